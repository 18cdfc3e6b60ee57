"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "llamacpp"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["CacheType", "LlamaCppOptions"]

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

_Positive = Annotated[int, Meta(ge=1)]
_Name = Annotated[str, Meta(min_length=1)]


class LlamaCppOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names that llama.cpp has for the same thing are kept."""

    context_length: _Positive | None = None
    """Tokens of prompt and answer together. None: the model's own limit, but at most 8192, since memory for them is
    reserved at once."""
    max_batch: Annotated[int, Meta(ge=1, le=255)] = 8
    """Answers generated at the same time; others wait."""
    kv_cache_tokens: Annotated[int, Meta(ge=16)] | None = None
    """Size of the key-value cache, in tokens over all answers. None: `context_length`."""
    cache_type_k: CacheType = "f16"
    """How the cache holds keys."""
    cache_type_v: CacheType = "f16"
    """How it holds values. The quantised types need `flash_attn`."""
    prefix_cache: bool = True
    """Leave an answer's keys and values in the cache until their place is needed, for prompts of the same client that
    begin alike."""
    prefill_tokens: Annotated[int, Meta(ge=16)] = 512
    """The most prompt tokens read in one pass. How many beside answers under way follows from how long they take."""
    flash_attn: Literal["auto", "on", "off"] = "auto"
    """llama.cpp's fused attention. ``auto``: where the device has it, except for a cache in f32, whose precision it
    would give away."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads. 0: OMP_NUM_THREADS, otherwise one core is left free."""
    n_gpu_layers: Annotated[int, Meta(ge=0)] | None = None
    """Layers to put on GPUs, if llama-cpp-python was built for them. None: all."""
    main_gpu: Annotated[int, Meta(ge=0)] = 0
    """The GPU to use when `split_mode` is ``none``."""
    split_mode: Literal["none", "layer", "row"] = "layer"
    """How several GPUs share the model."""
    tensor_split: tuple[Annotated[float, Meta(ge=0)], ...] = ()
    """Proportion of the model for each GPU, for instance ``[3, 1]``. Empty: by free memory."""
    use_mmap: bool = True
    """Map the file into memory, rather than read it."""
    use_mlock: bool = False
    """Keep the weights from being swapped out."""
    adapters: dict[_Name, Path] = {}
    """LoRA adapters as GGUF files, by the names under which clients ask for them."""
    chat_template: Path | None = None
    """A file with a Jinja chat template, instead of the model's own."""
    chat_template_kwargs: dict[str, Literal["bool", "int", "float", "str"]] = {}
    """Variables of the template that a request may set, and their types: ``{enable_thinking = "bool"}``."""
    generation_config: bool = True
    """Take temperature, top_p, top_k and so on from the file where it advises them and a request leaves them open."""
    embeddings: bool | None = None
    """Serve embeddings, which takes a context of their own. None: if the file says how to pool them."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How token vectors become one embedding. ``auto``: as the file says, otherwise the mean."""
