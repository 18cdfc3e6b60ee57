"""LoRA adapters as they lie on disk, in the form that peft saves.

The names of the tensors say which layers they belong to, so peft itself is not needed. What is more than two matrices
for each layer (DoRA, biases, layers trained as a whole) is refused, since it cannot be added to a shared layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from fastchat_serve import StartupError
from fastchat_serve.checkpoint import read_json

__all__ = ["LoraMatrices", "read_lora"]

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")

_CHANGES_THE_MODEL = ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_dora", "use_qalora")
"""Settings under which two matrices for each layer are not the whole adapter, or not always used."""

_HARMLESS_BEGINNINGS = ("eva", "gaussian", "orthogonal")
"""Where training began with the base model's weights as they are; others, as PiSSA, begin by changing them."""


class LoraMatrices(NamedTuple):
    """What is added to a layer's output is ``states @ down.T @ up.T``. The adapter's scale is in `up`."""

    down: Tensor
    """``[rank, in]``"""
    up: Tensor
    """``[out, rank]``"""


def read_lora(folder: Path) -> dict[str, LoraMatrices]:
    """The matrices by the name of their layer. Raises `StartupError` for what is no LoRA adapter, or more than one."""
    config = read_json(folder / "adapter_config.json")
    if not config:
        raise StartupError(f"{folder} is not a LoRA folder: it has no adapter_config.json")
    _check(config)
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(folder).items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise StartupError(f"it holds more than LoRA matrices, for instance {name}; `lora` may merge it")
        halves.setdefault(match[1], {})[match[2]] = tensor
    if not halves:
        raise StartupError("it holds no LoRA matrices")
    return {layer: _matrices(layer, pair, config) for layer, pair in halves.items()}


def _check(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise StartupError(f"it is not a LoRA adapter but one of type {config.get('peft_type')!r}")
    for name in _CHANGES_THE_MODEL:
        if config.get(name):
            raise StartupError(f"it is trained with `{name}`, which cannot share a base model; `lora` may merge it")
    beginning = config.get("init_lora_weights", True)
    if isinstance(beginning, str) and beginning not in _HARMLESS_BEGINNINGS:
        raise StartupError(
            f"it changes the base model's weights (init_lora_weights = {beginning!r}); convert it with peft"
        )


def _tensors(folder: Path) -> dict[str, Tensor]:
    file, pickle = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    try:
        if file.is_file():
            found: dict[str, Tensor] = safetensors.torch.load_file(file)
            return found
        if pickle.is_file():
            found = torch.load(pickle, map_location="cpu", weights_only=True)
            return found
    except Exception as error:  # whatever a broken file leads to
        raise StartupError(f"its weights cannot be read: {error}") from error
    raise StartupError(f"{folder} has no adapter_model.safetensors")


def _matrices(layer: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> LoraMatrices:
    if pair.keys() != {"A", "B"} or any(matrix.dim() != 2 for matrix in pair.values()):
        raise StartupError(f"it does not have the two LoRA matrices of {layer}")
    down, up = pair["A"].float(), pair["B"].float()
    if up.shape[1] != len(down):
        raise StartupError(f"the LoRA matrices of {layer} have different ranks")
    alpha = _of_layer(config.get("alpha_pattern") or {}, layer, config.get("lora_alpha", 8))
    scale = alpha / (math.sqrt(len(down)) if config.get("use_rslora") else len(down))
    return LoraMatrices(down, up * scale)


def _of_layer(patterns: Mapping[str, float], layer: str, default: float) -> float:
    """As peft reads its patterns: the first that matches the end of a layer's name."""
    matches = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    return next(matches, default)
