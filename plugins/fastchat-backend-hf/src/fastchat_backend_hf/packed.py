"""Matrix products with weights laid out beforehand as oneDNN's kernels read them.

Products in bfloat16 gain: otherwise the weights are rearranged in every call. In float32 few rows lose what many
gain, so there weights stay as they are. The two operations are those that torch's own compiler packs weights with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastchat_backend_hf.adapters import AdaptedLinear, unadapted, with_adapters
from fastchat_backend_hf.devices import bfloat16_instructions

__all__ = ["PackedLinear", "is_plain", "pack_head", "product"]


def is_plain(module: object) -> bool:
    """Whether this is torch's own linear layer, not quantised, with weights on the CPU. Adapters may be beside it."""
    module = unadapted(module)
    if type(module) is not nn.Linear or "forward" in vars(module):  # quantisers exchange the one or the other
        return False
    return type(module.weight.data) is Tensor and module.weight.device.type == "cpu"


def product(*layers: Any) -> Callable[[Tensor], Tensor]:
    """One function for the outputs of `layers` side by side, with what adapters add. It does not keep the layers.

    They are plain, and all have a bias, or none.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    if _gains(weight.dtype):
        return with_adapters(PackedLinear(weight, bias).forward, *layers)
    return with_adapters(partial(linear, weight=weight, bias=bias), *layers)


def pack_head(model: Any) -> bool:
    """Pack the layer that makes logits; False if that gains nothing, or the embedding uses its weights as well."""
    head = model.get_output_embeddings()
    if not is_plain(head) or not _gains(head.weight.dtype) or head.weight is model.get_input_embeddings().weight:
        return False
    packed = PackedLinear(head.weight.detach(), head.bias)
    if isinstance(head, AdaptedLinear):
        head.base = packed
    else:
        model.set_output_embeddings(packed)
    return True


class PackedLinear(nn.Module):
    """A linear layer whose matrix exists in oneDNN's layout only."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._matrix = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._matrix, self._bias, "none", [], "")
        return found


def _gains(dtype: torch.dtype) -> bool:
    packs = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return dtype == torch.bfloat16 and bfloat16_instructions() is not None and packs
