"""What an operator should know of how a model runs here, as the engine's notes say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from fastchat_backend_hf.checkpoint import Checkpoint
from fastchat_backend_hf.devices import bfloat16_instructions
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.quantization import unpacked_bits

__all__ = ["remarks"]


def remarks(checkpoint: Checkpoint, options: HfOptions, model: Any, device: torch.device) -> Iterator[str]:
    """Of `model`, which computes on `device`."""
    if options.trust_remote_code:
        yield "Python code that came with the model may run here (trust_remote_code)"
    if device.type == "cpu" and model.dtype != torch.float32:
        yield _of_half_precision(model.dtype)
    if checkpoint.quantization_method is not None:
        yield _of_quantized_weights(checkpoint, model, device)
    places = getattr(model, "hf_device_map", {}).values()
    offloaded = Counter(place for place in places if place == "disk" or (place == "cpu" and device.type != "cpu"))
    for place, count in offloaded.items():
        yield f"{count} of the model's {len(places)} parts are fetched from the {place} for every pass"


def _of_half_precision(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    instructions = bfloat16_instructions() if dtype == torch.bfloat16 else None
    if instructions is None:
        return f"this processor has no instructions for {name}, which makes it slower than float32"
    return f"bfloat16 on the CPU's {instructions}"


def _of_quantized_weights(checkpoint: Checkpoint, model: Any, device: torch.device) -> str:
    method = checkpoint.quantization_method
    kernels = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith("gptqmodel.")}
    if kernels:
        return f"the weights are quantised ({method}); kernel: {', '.join(sorted(kernels))}"
    if unpacked_bits(checkpoint, device) is not None:
        return f"the weights are stored quantised ({method}) and unpacked to {str(model.dtype).removeprefix('torch.')}"
    return f"the weights are quantised ({method})"
