"""Weights in fewer bits: what the option means to transformers."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from fastchat_backend_hf.options import Quantization
from fastchat_serve import StartupError

__all__ = ["quantizer", "shrunk_itemsize"]


def quantizer(name: Quantization, dtype: torch.dtype) -> Any:
    """The config object for ``from_pretrained``. Raises `StartupError` if the library is missing."""
    library = name.partition("-")[0]
    if importlib.util.find_spec(library) is None:
        raise StartupError(f"quantization {name!r} needs {library}: pip install 'fastchat-backend-hf[{library}]'")
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(version=2))
    from transformers import BitsAndBytesConfig

    if name == "bitsandbytes-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def shrunk_itemsize(name: Quantization | None, dtype: torch.dtype) -> float:
    """Bytes per number of the weights, scales included."""
    if name is None:
        return dtype.itemsize
    return 0.6 if name.endswith("4bit") else 1.1
