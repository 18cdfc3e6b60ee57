"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "hf"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["HfOptions", "Quantization"]

Quantization = Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"]

_Positive = Annotated[int, Meta(ge=1)]
_Bytes = Annotated[str, Meta(pattern=r"^\d+(\.\d+)? ?([KMGT]i?B|B)$", title='a size such as "20GiB" or "512MiB"')]
_Device = Annotated[
    str,
    Meta(
        pattern=r"^(auto|cpu|(cuda|mps|xpu|npu)(:\d+)?)$",
        title='"auto", "cpu", "cuda", "mps", "xpu" or "npu", the last four also with a number: "cuda:1"',
    ),
]


class HfOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every default means: choose what suits the model and the machine."""

    device: _Device = "auto"
    """Where the model runs. ``auto``: the first accelerator there is, otherwise the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and cache. ``auto``: the checkpoint's own; on a CPU float32, except for bfloat16 where it has that."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Spread the layers over several devices, as accelerate does. None: all on `device`."""
    offload_folder: Path | None = None
    """With `device_map`: layers for which no device has room may stay on disk, and be read for every pass. They are
    read from the model's own files, or from copies in this folder where those must be rewritten."""
    max_memory: dict[Annotated[str, Meta(pattern=r"^(\d+|cpu)$")], _Bytes] = {}
    """With `device_map`: the most to use per device, for instance ``{"0" = "20GiB", cpu = "64GiB"}``."""
    quantization: Quantization | None = None
    """Shrink the weights while loading; checkpoints that are quantised already need nothing. Needs the extra of the
    same name."""
    gptq_kernel: Literal["auto", "torch", "triton", "exllama_v2", "marlin", "machete"] = "auto"
    """What multiplies with the weights of a GPTQ or AWQ checkpoint. ``auto``: the fastest that gptqmodel finds."""
    lora: Path | None = None
    """Folder of a LoRA adapter, merged into the weights while loading. Needs the extra ``peft``."""
    adapters: dict[Annotated[str, Meta(min_length=1)], Path] = {}
    """Folders of LoRA adapters by the names under which clients ask for them: ``{french = "adapters/french"}``. They
    share the model's weights, and answers of all of them and of the model itself run together."""
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
    context_length: _Positive | None = None
    """Tokens of prompt and answer together. None: the model's own limit."""
    max_batch: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Answers generated at the same time; others wait."""
    kv_cache_tokens: Annotated[int, Meta(ge=16)] | None = None
    """Bound of the key-value cache, in tokens over all answers."""
    kv_cache_bytes: _Bytes | None = None
    """The same in bytes, for instance ``"2GiB"``. None for both: from the memory free after loading."""
    prefill_tokens: _Positive = 2048
    """The most prompt tokens read in one pass. How many between two steps of answers under way follows from how long
    they take."""
    prefix_cache: bool = True
    """Keep what was computed for prompts and answers, in memory that the cache has left, and reuse it for prompts of
    the same client that begin alike."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads of torch, for the whole process. 0: OMP_NUM_THREADS, otherwise one core is left free."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How token vectors become one embedding. ``auto``: as the model says, otherwise the mean."""

    def __post_init__(self) -> None:
        if self.max_memory and self.device_map is None:
            raise ValueError("max_memory only works with device_map")
        if self.offload_folder is not None and self.device_map is None:
            raise ValueError("offload_folder only works with device_map")
        if self.kv_cache_tokens is not None and self.kv_cache_bytes is not None:
            raise ValueError("give one of kv_cache_tokens and kv_cache_bytes")
