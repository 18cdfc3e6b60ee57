"""Where a model runs, in which precision, and how much memory there is."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastchat_serve import StartupError

__all__ = [
    "bfloat16_instructions",
    "empty_cache",
    "execution_device",
    "free_memory",
    "parse_bytes",
    "pick_device",
    "pick_dtype",
    "pick_threads",
]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def pick_device(name: str) -> torch.device:
    """The device called `name`; ``auto`` is the first accelerator, otherwise the CPU. Raises `StartupError`."""
    if name in ("auto", "npu") and importlib.util.find_spec("torch_npu") is not None:
        importlib.import_module("torch_npu")  # makes the device known to torch
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if accelerator is None or accelerator.type != device.type:
        found = accelerator.type if accelerator else "none"
        raise StartupError(f"device {name!r} is not here (accelerator found: {found}); use 'auto' or 'cpu'")
    if device.index is not None and device.index >= torch.accelerator.device_count():
        raise StartupError(f"device {name!r} is not here: there are {torch.accelerator.device_count()}")
    return device


def pick_dtype(name: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision called `name`; ``auto`` is the one the weights are `stored` in.

    On a CPU it is float32, except for weights stored in bfloat16 where the processor multiplies in it.
    """
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type == "cpu":
        return torch.bfloat16 if stored is torch.bfloat16 and bfloat16_instructions() else torch.float32
    return stored if stored in (torch.float32, torch.bfloat16, torch.float16) else torch.bfloat16


def bfloat16_instructions() -> str | None:
    """What this processor multiplies bfloat16 with, ``AMX`` or ``AVX512-BF16``; None: nothing that pays.

    Not what the environment forbids oneDNN, which makes the products.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    if capabilities.get("amx_bf16", False) and re.search("AMX|DEFAULT|ALL", limit.upper()):
        return "AMX"
    if capabilities.get("avx512_bf16", False) and re.search("BF16|FP16|AMX|AVX10|DEFAULT|ALL", limit.upper()):
        return "AVX512-BF16"
    return None


def execution_device(module: Any) -> torch.device:
    """Where `module` computes. accelerate may keep its weights elsewhere, and brings them there for a pass."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is not None:
        return torch.device(device)
    found: torch.device = next(itertools.chain(module.parameters(), module.buffers())).device
    return found


def pick_threads(wanted: int) -> int:
    """Threads for torch on a CPU. One core is left to the event loop: two that share one are slower than one alone."""
    if wanted:
        return wanted
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def parse_bytes(text: str) -> int:
    """``"2GiB"`` in bytes. K, M, G and T are powers of 1024, with or without the i."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)i?B", text)
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cpu":
        return _free_host_memory()
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    module = getattr(torch, device.type)  # torch.cuda, torch.xpu, torch.npu
    free, _ = module.mem_get_info(device)
    return int(free)


def empty_cache() -> None:
    """Give memory back to the accelerator: that of what nobody refers to any more, and what torch keeps for later."""
    gc.collect()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        getattr(torch, accelerator.type).empty_cache()


def _free_host_memory() -> int:
    """What the system says is available, and no more than the control group allows."""
    found = [_meminfo_available(), _cgroup_headroom()]
    known = [value for value in found if value is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _meminfo_available() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _cgroup_headroom() -> int | None:
    """Under the limit of the control group (version 2) that this process sees as its root."""
    root = Path("/sys/fs/cgroup")
    try:
        return int((root / "memory.max").read_text()) - int((root / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
