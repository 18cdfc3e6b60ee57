"""From our options to vLLM's engine arguments. Plain values in, plain values out; vLLM is not needed here."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fastchat_backend_vllm.options import VllmOptions
from fastchat_serve import ConfigError, StartupError

__all__ = ["adapter_rank", "engine_arguments", "size_in_bytes"]

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes that vLLM has kernels for; smaller adapters are filled up."""

_DRAIN_S = 3600
"""How long the engine's process goes on with answers under way after a signal: a Ctrl-C in a terminal reaches it too,
while it is for the server to say when it ends."""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def engine_arguments(
    model: str, options: VllmOptions, known: Collection[str], *, cpu_kv_bytes: int | None
) -> dict[str, Any]:
    """The keyword arguments of ``AsyncEngineArgs``, whose fields are `known`.

    `cpu_kv_bytes` is, on a CPU, the size of the key-value cache where the options leave it open; None: it is no CPU.

    Raises:
        ConfigError: An entry of `extra` is no argument, or is an option of ours.
        StartupError: An adapter cannot be read.
    """
    kv_bytes = size_in_bytes(options.kv_cache_memory) if options.kv_cache_memory else None
    if kv_bytes is None and options.gpu_memory_utilization is None:
        kv_bytes = cpu_kv_bytes
    open_to_vllm = {
        "quantization": options.quantization,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_memory_bytes": kv_bytes,
        "revision": options.revision,
        "enable_prefix_caching": None if options.prefix_cache else False,  # on by itself where the model allows it
    }
    arguments = {
        "model": model,
        "dtype": options.dtype,
        "runner": options.runner,
        "kv_cache_dtype": options.kv_cache_dtype,
        "enforce_eager": options.enforce_eager,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "trust_remote_code": options.trust_remote_code,
        "scheduling_policy": "priority",
        # Where white space is free, a model that is drawn from at random may go on with it until `max_tokens`.
        "structured_outputs_config": {"backend": options.structured_outputs, "disable_any_whitespace": True},
        "shutdown_timeout": _DRAIN_S,
        **{name: value for name, value in open_to_vllm.items() if value is not None},
        **_lora_arguments(options, on_cpu=cpu_kv_bytes is not None),
    }
    _check_extra(options.extra, known, arguments.keys() | open_to_vllm.keys())
    quiet = {"disable_log_stats": True, "use_tqdm_on_load": False}
    return quiet | arguments | options.extra


def size_in_bytes(size: str) -> int:
    """``"1.5GiB"`` as a number; K, M, G and T are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)i?B", size)
    if match is None:
        raise ConfigError(f"{size!r} is no size: write it like '512MiB' or '2GiB'")
    return int(float(match[1]) * 1024 ** _UNITS[match[2]])


def adapter_rank(name: str, folder: Path) -> int:
    """The rank that the adapter's config states. Raises `StartupError`."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = config["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(
            f"the adapter {name!r} cannot be read: {folder} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(rank, int) or not 1 <= rank <= _LORA_RANKS[-1]:
        raise StartupError(f"the adapter {name!r} has rank {rank!r}; vLLM takes 1 to {_LORA_RANKS[-1]}")
    return rank


def _lora_arguments(options: VllmOptions, *, on_cpu: bool) -> dict[str, Any]:
    if not options.adapters:
        return {}
    count = len(options.adapters)
    # On a CPU, vLLM gives rows without an adapter the one in its last slot: `lora/ops/torch_ops` takes their -1 for an
    # index. With a slot more than there are adapters, that one stays empty, and adds nothing.
    slots = count + 1 if on_cpu else min(options.max_loras or count, count)
    highest = max(adapter_rank(name, folder) for name, folder in options.adapters.items())
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": max(slots, count),
        "max_lora_rank": next(rank for rank in _LORA_RANKS if rank >= highest),
    }


def _check_extra(extra: Mapping[str, Any], known: Collection[str], ours: Collection[str]) -> None:
    for name in extra:
        if name in ours:
            raise ConfigError(
                "vLLM is told this by the backend's own options, or must not be told otherwise", key=f"extra.{name}"
            )
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"vLLM has no such engine argument{hint}", key=f"extra.{name}")
