"""A model folder before it is loaded: what it holds, and how big it is.

What backends for such folders share is in `fastchat_serve.checkpoint`; here is what transformers knows of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from fastchat_serve import Progress, StartupError
from fastchat_serve.checkpoint import find_folder, weight_files

__all__ = ["Checkpoint", "Kind", "open_checkpoint"]

Kind = Literal["causal", "encoder-decoder", "encoder"]

_PLAIN_NUMBERS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a config that transformers understands."""

    folder: Path
    config: PreTrainedConfig
    kind: Kind

    @property
    def text_config(self) -> PreTrainedConfig:
        """The part of the config that describes the language model: multimodal ones nest it."""
        return self.config.get_text_config(decoder=True)

    @property
    def quantization(self) -> Mapping[str, Any]:
        """How the weights are quantised, in the words of the config; empty if they are not."""
        found = getattr(self.config, "quantization_config", None) or {}
        return found if isinstance(found, Mapping) else dict(found.to_dict())

    @property
    def quantization_method(self) -> str | None:
        """``gptq``, ``awq``, ``compressed-tensors`` and so on; None: the weights are plain numbers."""
        method = self.quantization.get("quant_method")
        if method is None and (self.quantization.get("load_in_8bit") or self.quantization.get("load_in_4bit")):
            return "bitsandbytes"
        return None if method is None else str(method)

    @property
    def weight_files(self) -> list[Path]:
        """In a fixed order; pickles only if there are no safetensors."""
        return weight_files(self.folder)

    def weights_bytes(self, itemsize: float, *, unpacked_bits: int | None = None) -> int:
        """Bytes of the weights once each plain number takes `itemsize`.

        Quantised ones stay as they are; with `unpacked_bits` they become plain numbers, of so many bits in the file.
        """
        sizes = [_sizes(path) for path in self.weight_files]
        numbers, quantized_bytes = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
        if unpacked_bits is not None:
            numbers, quantized_bytes = numbers + quantized_bytes * 8 // unpacked_bits, 0
        return int(numbers * itemsize) + quantized_bytes


def open_checkpoint(model: str, *, revision: str | None, trust_remote_code: bool, progress: Progress) -> Checkpoint:
    """Find `model`, a folder or a hub id, and see what it is. Raises `StartupError`."""
    folder = find_folder(model, revision=revision, with_code=trust_remote_code, progress=progress)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises whatever a broken config leads to
        raise StartupError(f"the config.json of {model} cannot be used: {_first_line(error)}") from error
    checkpoint = Checkpoint(folder, config, _kind(model, config, trust_remote_code))
    if not checkpoint.weight_files:
        raise StartupError(f"{model} has no weights: neither .safetensors nor .bin files")
    return checkpoint


def _sizes(path: Path) -> tuple[int, int]:
    """How many plain numbers a weights file holds, and how many bytes of others."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 2, 0  # most pickles hold half precision
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
        except ValueError as error:
            raise StartupError(f"{path.name} of the model is no safetensors file, or was cut short") from error
    numbers = quantized_bytes = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] in _PLAIN_NUMBERS:
            numbers += prod(tensor["shape"])
        else:
            begin, end = tensor["data_offsets"]
            quantized_bytes += end - begin
    return numbers, quantized_bytes


def _kind(model: str, config: PreTrainedConfig, trust_remote_code: bool) -> Kind:
    architecture = (config.architectures or [""])[0]
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "causal"
    if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal"
    if architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return "encoder-decoder"
    bare = (*MODEL_MAPPING_NAMES.values(), *MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
    if architecture in bare and not config.is_encoder_decoder:
        return "encoder"
    if not architecture and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "causal"
    raise StartupError(
        f"{model} is neither a causal language model nor a text encoder: its architecture is "
        f"{architecture or config.model_type!r}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
