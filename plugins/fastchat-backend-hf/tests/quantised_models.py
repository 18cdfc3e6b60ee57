"""Checkpoints as quantisers write them, rounded to the nearest in groups, and what they stand for in full precision.

Written here bit by bit: the libraries that read such files calibrate for minutes before they write any.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["FORMATS", "quantised"]

GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies in which four bits of an AWQ word."""

Tensors = dict[str, Tensor]
Pack = Callable[[Tensor, Tensor], Tensors]
"""From whole numbers 0 to 15 ``[out, in]``, 8 being zero, and scales ``[out, groups]`` to what lies in the file."""


def _words(numbers: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Every eight numbers along `dim` in one int32."""
    eights = numbers.long().unflatten(dim, (-1, 8)).movedim(dim + 1 if dim >= 0 else dim, 0)
    word = torch.zeros_like(eights[0])
    for place, source in enumerate(order):
        word |= eights[source] << (4 * place)
    return (word & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def _gptq(numbers: Tensor, scales: Tensor) -> Tensors:
    groups, outputs = scales.shape[1], len(numbers)
    zeros = torch.full((groups, outputs), 8 - 1)  # this form adds one
    return {
        "qweight": _words(numbers.T, 0),
        "qzeros": _words(zeros, 1),
        "scales": scales.T.half(),
        "g_idx": (torch.arange(numbers.shape[1]) // GROUP).int(),
    }


def _awq(numbers: Tensor, scales: Tensor) -> Tensors:
    zeros = torch.full((scales.shape[1], len(numbers)), 8)
    return {
        "qweight": _words(numbers.T, 1, _AWQ_ORDER),
        "qzeros": _words(zeros, 1, _AWQ_ORDER),
        "scales": scales.T.half(),
    }


def _packed(numbers: Tensor, scales: Tensor) -> Tensors:
    return {
        "weight_packed": _words(numbers, 1),
        "weight_scale": scales.half(),
        "weight_shape": torch.tensor(numbers.shape),
    }


def _fp8(numbers: Tensor, scales: Tensor) -> Tensors:
    """Blocks of `GROUP` rows and columns with a scale each; whole numbers up to 8 are exact."""
    return {
        "weight": (numbers - 8).float().to(torch.float8_e4m3fn),
        "weight_scale_inv": scales[::GROUP].float(),
    }


_COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": GROUP,
            },
        }
    },
}

FORMATS: dict[str, tuple[Pack, dict[str, object]]] = {
    "gptq": (
        _gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "lm_head": False},
    ),
    "awq": (
        _awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    ),
    "compressed-tensors": (_packed, _COMPRESSED),
    "fp8": (
        _fp8,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [GROUP, GROUP]},
    ),
}


def quantised(folder: Path, model: PreTrainedModel, method: str) -> PreTrainedModel:
    """Rewrite the weights of `model`, saved in `folder`, by `method`. Returns it with the weights that are meant."""
    pack, config = FORMATS[method]
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    meant = dict(tensors)
    for name in [name for name in tensors if "_proj.weight" in name]:
        weight = tensors.pop(name).float().unflatten(1, (-1, GROUP))
        scales = (weight.abs().amax(-1) / 7).half()
        if method == "fp8":
            scales = scales.unflatten(0, (-1, GROUP)).amax(1).repeat_interleave(GROUP, 0)
        numbers = (weight / scales.float()[..., None]).round().clamp(-8, 7)
        meant[name] = (numbers * scales.float()[..., None]).flatten(1)
        for suffix, tensor in pack((numbers + 8).flatten(1), scales).items():
            tensors[name.removesuffix("weight") + suffix] = tensor.contiguous()
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"quantization_config": config, "dtype": "float16"}))
    model.load_state_dict({name: tensor.float() for name, tensor in meant.items()})
    return model
