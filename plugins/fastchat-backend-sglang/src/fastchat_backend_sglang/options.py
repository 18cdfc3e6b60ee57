"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "sglang"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from fastchat_serve.text import VariableType

__all__ = ["SglangOptions"]

_Positive = Annotated[int, Meta(ge=1)]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9_-]+$", title="a name as SGLang writes it")]


class SglangOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is not set is left to SGLang, except on a CPU: see the manual."""

    device: Literal["auto", "cpu", "cuda", "xpu", "hpu", "npu", "musa"] = "auto"
    """Where the model runs. ``auto``: the accelerator that there is, otherwise the CPU."""
    task: Literal["generate", "embed"] = "generate"
    """What the model is for; SGLang does one of the two."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations. ``auto``: the checkpoint's own."""
    quantization: _Name | None = None
    """Of the weights, as SGLang names it: ``fp8``, ``awq``, ``gptq``, … None: as the checkpoint says."""
    kv_cache_dtype: _Name | None = None
    """Of the key-value cache, for instance ``fp8_e4m3``. None: that of the activations."""
    tp_size: _Positive = 1
    """Tensor parallelism: devices that share each layer."""
    pp_size: _Positive = 1
    """Pipeline parallelism: groups of layers on devices of their own."""
    dp_size: _Positive = 1
    """Data parallelism: copies of the model."""
    context_length: _Positive | None = None
    """Tokens of prompt and answer together. None: the model's own limit."""
    max_batch: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Answers generated at the same time; others wait. None: as SGLang works out from the memory."""
    kv_cache_tokens: Annotated[int, Meta(ge=64)] | None = None
    """Bound of the key-value cache, in tokens over all answers. None: from `mem_fraction_static`."""
    mem_fraction_static: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """The part of the device's memory for weights and key-value cache."""
    chunked_prefill_size: _Positive | None = None
    """The most prompt tokens read in one step."""
    attention_backend: _Name | None = None
    """Kernels for attention: ``fa3``, ``flashinfer``, ``triton``, ``torch_native``, …"""
    grammar_backend: Literal["xgrammar", "llguidance", "none"] | None = None
    """What enforces constraints. None: ``xgrammar``, on a CPU ``llguidance``. ``none``: there are no constraints."""
    prefix_cache: bool = True
    """Reuse what was computed for prompts of the same client that begin alike."""
    deterministic: bool = False
    """Batch-invariant kernels, slower: equal requests with equal seeds have equal answers. Needs an accelerator."""
    adapters: dict[str, Path] = {}
    """LoRA adapters: the names that clients ask for, and their folders."""
    max_lora_rank: _Positive | None = None
    """The highest rank among `adapters`. None: as their configs say."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do whatever this server can."""
    chat_template: Path | None = None
    """A file with a Jinja chat template, instead of the model's own."""
    chat_template_kwargs: dict[str, VariableType] = {}
    """Variables of the template that a request may set, and their types: ``{enable_thinking = "bool"}``."""
    generation_config: bool = True
    """Take temperature, top_p, top_k and min_p from the model's generation config where a request leaves them open.
    False: OpenAI's defaults, whatever the model."""
    log_level: Literal["debug", "info", "warning", "error"] = "error"
    """What SGLang writes to the server's standard error."""
    extra: dict[str, Any] = {}
    """Any other of SGLang's ``ServerArgs``, by the name of its field: ``{schedule_policy = "lpm"}``."""
