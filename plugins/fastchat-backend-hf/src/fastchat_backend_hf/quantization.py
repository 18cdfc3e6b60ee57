"""Weights in fewer bits: shrunk while loading, or stored so by whoever made the checkpoint.

A checkpoint says in its config how it is quantised, and transformers finds the kernels, most of them in libraries of
their own. What is done here is to ask for the library before anything is loaded, and to hand on the choice of a kernel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from fastchat_backend_hf.checkpoint import Checkpoint
from fastchat_backend_hf.options import HfOptions, Quantization
from fastchat_serve import StartupError

__all__ = ["prepare_stored", "quantizer", "shrunk_itemsize", "unpacked_bits"]

_LIBRARIES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "awq": ("gptq", ("gptqmodel",)),
        "bitsandbytes": ("bitsandbytes", ("bitsandbytes",)),
        "compressed-tensors": ("compressed-tensors", ("compressed_tensors",)),
        "gptq": ("gptq", ("gptqmodel", "optimum")),
        "torchao": ("torchao", ("torchao",)),
    }
)
"""Of each method of quantised checkpoints, our extra and the modules that it brings. transformers knows others."""

_WITH_KERNELS_OF_GPTQMODEL = ("awq", "gptq")
_AWQ_NAMES: Final[Mapping[str, str]] = MappingProxyType({"torch": "torch_awq", "triton": "gemm_triton"})
"""Kernels that transformers calls differently for AWQ."""

_UNPACKED_ON_A_CPU: Final[Mapping[str, int]] = MappingProxyType({"fbgemm_fp8": 8, "fp8": 8, "mxfp4": 4})
"""Methods without kernels for it, and their bits: transformers unpacks the weights while loading."""


def quantizer(name: Quantization, dtype: torch.dtype, *, offloads: bool) -> Any:
    """The config object for ``from_pretrained``. Raises `StartupError` if the library is missing.

    `offloads`: some layers may have to stay in the host's memory, which bitsandbytes wants to be told.
    """
    library = name.partition("-")[0]
    _require((library,), library, f"quantization {name!r}")
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(version=2))
    from transformers import BitsAndBytesConfig

    if name == "bitsandbytes-8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=offloads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_enable_fp32_cpu_offload=offloads,
    )


def shrunk_itemsize(name: Quantization | None, dtype: torch.dtype) -> float:
    """Bytes per number of the weights, scales included."""
    if name is None:
        return dtype.itemsize
    return 0.6 if name.endswith("4bit") else 1.1


def prepare_stored(checkpoint: Checkpoint, options: HfOptions, device: torch.device) -> None:
    """See to it that `checkpoint` can be loaded if it is quantised. Raises `StartupError` if it cannot.

    How it is to run is noted in its config, where transformers looks for it.
    """
    method = checkpoint.quantization_method
    if options.gptq_kernel != "auto" and method not in _WITH_KERNELS_OF_GPTQMODEL:
        raise StartupError(f"gptq_kernel is for GPTQ and AWQ checkpoints; this one is {method or 'not quantised'}")
    if method is None:
        return
    if options.quantization is not None:
        raise StartupError(f"the model is quantised already ({method}); leave out `quantization`")
    if method in _LIBRARIES:
        extra, modules = _LIBRARIES[method]
        _require(modules, extra, f"this model is quantised ({method}) and")
    settings: dict[str, Any] = dict(checkpoint.quantization)
    if method in _WITH_KERNELS_OF_GPTQMODEL and options.gptq_kernel != "auto":
        names = _AWQ_NAMES if method == "awq" else {}
        settings["backend"] = names.get(options.gptq_kernel, options.gptq_kernel)
    elif method == "compressed-tensors":
        # Otherwise the first pass would unpack the weights all the same, and every later one round them once more.
        kept = _is_kept(checkpoint, device)
        settings |= {"use_optimized_inference": kept, "dequantize": not kept}
    checkpoint.config.quantization_config = settings


def unpacked_bits(checkpoint: Checkpoint, device: torch.device) -> int | None:
    """The bits of stored weights that will be unpacked to the model's precision; None: they stay as they are."""
    method = checkpoint.quantization_method
    if method == "compressed-tensors":
        return None if _is_kept(checkpoint, device) else min((_bits(group) for group in _groups(checkpoint)), default=8)
    return _UNPACKED_ON_A_CPU.get(method or "") if device.type == "cpu" else None


def _is_kept(checkpoint: Checkpoint, device: torch.device) -> bool:
    """Whether transformers has kernels for weights that compressed-tensors has written: for FP8 on an accelerator."""
    weights = [group.get("weights") or {} for group in _groups(checkpoint)]
    fp8 = bool(weights) and all(one.get("type") == "float" and one.get("num_bits") == 8 for one in weights)
    return fp8 and device.type in ("cuda", "xpu")


def _groups(checkpoint: Checkpoint) -> list[Mapping[str, Any]]:
    return list((checkpoint.quantization.get("config_groups") or {}).values())


def _bits(group: Mapping[str, Any]) -> int:
    return int((group.get("weights") or {}).get("num_bits", 8))


def _require(modules: tuple[str, ...], extra: str, what: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise StartupError(f"{what} needs {' and '.join(missing)}: pip install 'fastchat-backend-hf[{extra}]'")
