"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "vllm"``.

Names are vLLM's own wherever it has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

__all__ = ["VllmOptions"]

_Positive = Annotated[int, Meta(ge=1)]
_Name = Annotated[str, Meta(pattern=r"^[^\s/]+(/[^\s/]+)*$", title="a model name")]
_Bytes = Annotated[str, Meta(pattern=r"^\d+(\.\d+)? ?([KMGT]i?B|B)$", title='a size such as "20GiB" or "512MiB"')]


class VllmOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every default means: what vLLM chooses for the model and the machine."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations. ``auto``: the checkpoint's own, float32 as half precision."""
    quantization: str | None = None
    """How the checkpoint is quantised (``awq``, ``gptq``, ``fp8``, ``compressed-tensors``, …), or how to quantise it
    while loading (``fp8``). None: what the checkpoint says."""
    runner: Literal["auto", "generate", "pooling"] = "auto"
    """``generate``: answers; ``pooling``: embeddings, from language models too. ``auto``: as the model is made."""
    max_model_len: _Positive | None = None
    """Tokens of prompt and answer together. None: the model's own limit."""
    max_num_seqs: _Positive | None = None
    """Answers generated at the same time; others wait."""
    max_num_batched_tokens: _Positive | None = None
    """The most tokens, of prompts and answers, in one pass of the model."""
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    """The share of the device's memory to take, weights included."""
    kv_cache_memory: _Bytes | None = None
    """Of the key-value cache, for instance ``"4GiB"``, instead of a share. None on a CPU, without a share: a quarter of
    the memory that is free."""
    kv_cache_dtype: str = "auto"
    """``auto``: that of the weights; ``fp8`` and its kinds halve the cache where the device can."""
    prefix_cache: bool = True
    """Keep what was computed for prompts, and reuse it for prompts of the same client that begin alike."""
    enforce_eager: bool = False
    """Do not compile the model and capture no CUDA graphs: starts sooner, runs slower on a GPU."""
    tensor_parallel_size: _Positive = 1
    """Devices that share every layer."""
    pipeline_parallel_size: _Positive = 1
    """Groups of devices that have some of the layers each."""
    cpu_threads_bind: str | None = None
    """Cores of the CPU engine, as in ``0-7`` or ``nobind``. None: vLLM chooses."""
    adapters: dict[_Name, Path] = {}
    """LoRA adapters that requests can ask for, by name: ``{sql = "adapters/sql"}``."""
    max_loras: _Positive | None = None
    """Different adapters in one pass, on a device. None, and on a CPU: all of them."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do whatever this process can."""
    chat_template: Path | None = None
    """A file with a Jinja chat template, instead of the model's own."""
    chat_template_kwargs: dict[str, Literal["bool", "int", "float", "str"]] = {}
    """Variables of the template that a request may set, and their types: ``{enable_thinking = "bool"}``."""
    generation_config: bool = True
    """Take temperature, top_p, top_k and so on from the model's generation config where a request leaves them open.
    False: OpenAI's defaults, whatever the model."""
    structured_outputs: Literal["xgrammar", "guidance"] = "xgrammar"
    """The library behind JSON, regular expressions and grammars. One for the engine's whole life: vLLM has no other
    once the first constraint was compiled."""
    extra: dict[str, Any] = {}
    """Any other of vLLM's engine arguments, by its name in Python: ``{block_size = 32}``."""
