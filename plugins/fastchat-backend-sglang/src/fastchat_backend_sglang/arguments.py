"""From options to SGLang's ``ServerArgs``: values in, values out."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fastchat_backend_sglang.options import SglangOptions
from fastchat_serve import ConfigError

__all__ = ["SPARE_TOKENS", "server_args"]

SPARE_TOKENS = 8
"""SGLang keeps the last tokens of a context to itself: five of the longest prompt, one or two of the answer. So it is
told of some more than there are."""

_CPU_CACHE_CONTEXTS = 4
"""On a CPU: full contexts that the key-value cache holds, if nothing is said. SGLang would take most of the memory."""

_OURS: Final = frozenset(
    {
        "custom_sigquit_handler",
        "enable_lora",
        "incremental_streaming_output",
        "is_embedding",
        "lora_paths",
        "model_path",
        "node_rank",
        "skip_tokenizer_init",
        "stream_interval",
        "tokenizer_worker_num",
    }
)
"""Arguments that the backend depends on."""


def server_args(
    folder: Path, options: SglangOptions, *, device: str, context_length: int, amx: bool, known: Sequence[str]
) -> dict[str, Any]:
    """The arguments for SGLang's `Engine`.

    Args:
        context_length: Tokens of prompt and answer together.
        amx: The processor has AMX, for which SGLang has kernels of its own.
        known: The names of all arguments that there are.

    Raises:
        ConfigError: An entry of `SglangOptions.extra` cannot be.
    """
    arguments: dict[str, Any] = {
        "model_path": str(folder),
        "device": device,
        "dtype": options.dtype,
        "context_length": context_length + SPARE_TOKENS,
        "tp_size": options.tp_size,
        "pp_size": options.pp_size,
        "dp_size": options.dp_size,
        "trust_remote_code": options.trust_remote_code,
        "is_embedding": options.task == "embed",
        # Embedding requests have no salt, so their cache would tell one client what another sent.
        "disable_radix_cache": not options.prefix_cache or options.task == "embed",
        "enable_deterministic_inference": options.deterministic,
        "enable_priority_scheduling": True,
        "schedule_low_priority_values_first": True,
        "disable_priority_preemption": True,
        "incremental_streaming_output": True,
        "stream_interval": 1,
        "sleep_on_idle": True,
        "skip_server_warmup": True,
        "custom_sigquit_handler": signal.SIG_IGN,
        "log_level": options.log_level,
    }
    optional = {
        "quantization": options.quantization,
        "kv_cache_dtype": options.kv_cache_dtype,
        "max_running_requests": options.max_batch,
        "max_total_tokens": options.kv_cache_tokens,
        "mem_fraction_static": options.mem_fraction_static,
        "chunked_prefill_size": options.chunked_prefill_size,
        "attention_backend": options.attention_backend,
        "grammar_backend": options.grammar_backend,
        "max_lora_rank": options.max_lora_rank,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    if options.adapters:
        arguments |= {"enable_lora": True, "lora_paths": {name: str(path) for name, path in options.adapters.items()}}
    if device == "cpu":
        arguments = _cpu_defaults(options, context_length, amx=amx) | arguments
    for name in options.extra:
        _check_extra(name, known)
    return arguments | options.extra


def _cpu_defaults(options: SglangOptions, context_length: int, *, amx: bool) -> dict[str, Any]:
    """What SGLang needs to be told to run without an accelerator."""
    defaults: dict[str, Any] = {
        "sampling_backend": "pytorch",
        "grammar_backend": "llguidance",  # XGrammar's kernels are not for CPUs
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "lora_backend": "torch_native",
    }
    if not amx:
        defaults["attention_backend"] = "torch_native"
    if options.mem_fraction_static is None:
        tokens = _CPU_CACHE_CONTEXTS * (context_length + SPARE_TOKENS)
        defaults |= {"mem_fraction_static": 0.5, "max_total_tokens": tokens}
    return defaults


def _check_extra(name: str, known: Sequence[str]) -> None:
    if name in _OURS:
        raise ConfigError(f"options.extra.{name}: the backend sets this itself")
    if name in SglangOptions.__struct_fields__:
        raise ConfigError(f"options.extra.{name}: this is an option of the backend; write it outside of extra")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"options.extra.{name}: SGLang has no such argument{hint}")
