"""Weights into memory: checked beforehand, shrunk if asked, with an adapter merged in.

Leaves the choice of device and precision to `devices.py`. Its errors say what to change.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from fastchat_backend_hf.checkpoint import Checkpoint, Kind
from fastchat_backend_hf.devices import free_memory, parse_bytes
from fastchat_backend_hf.failures import is_out_of_memory
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.quantization import prepare_stored, quantizer, shrunk_itemsize, unpacked_bits
from fastchat_serve import Progress, StartupError

__all__ = ["load_weights"]

_AUTO: Mapping[Kind, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    "encoder": transformers.AutoModel,
}


def load_weights(
    checkpoint: Checkpoint, options: HfOptions, device: torch.device, dtype: torch.dtype, progress: Progress
) -> Any:
    """The model of `checkpoint`, ready for inference. Raises `StartupError`."""
    prepare_stored(checkpoint, options, device)
    _check_memory(checkpoint, options, device, dtype)
    settings: dict[str, Any] = {"device_map": options.device_map or {"": device}}
    if options.max_memory:
        settings["max_memory"] = _memory_caps(options)
    if options.offload_folder is not None:
        settings["offload_folder"] = options.offload_folder
    if options.quantization is not None:
        offloads = options.device_map is not None
        settings["quantization_config"] = quantizer(options.quantization, dtype, offloads=offloads)
    try:
        with _reported(progress):
            model, report = _AUTO[checkpoint.kind].from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=options.trust_remote_code,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # whatever broken weights, a missing library or a full device lead to
        if is_out_of_memory(error):
            raise StartupError(f"{device} has not enough memory for this model in {dtype}") from error
        raise StartupError(f"the model cannot be loaded: {error}") from error
    if checkpoint.kind != "encoder" and (missing := sorted(report["missing_keys"])):
        # transformers would go on with random numbers in their place. An encoder may lack its pooling head.
        raise StartupError(f"the weights lack {len(missing)} tensors, for instance {missing[0]}")
    on_disk = sum(place == "disk" for place in getattr(model, "hf_device_map", {}).values())
    if on_disk and options.offload_folder is None:
        raise StartupError(f"no device has room for {on_disk} parts of the model; `offload_folder` leaves them on disk")
    if options.lora is not None:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise StartupError("`lora` cannot be merged into layers that are offloaded; `adapters` run beside them")
        stored_plain = checkpoint.quantization_method is None or unpacked_bits(checkpoint, device) is not None
        model = _with_lora(model, options.lora, merge=options.quantization is None and stored_plain)
    return model.eval()


def _check_memory(checkpoint: Checkpoint, options: HfOptions, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse before loading what cannot fit: running out half-way takes minutes, or the whole machine."""
    if options.offload_folder is not None:
        return  # what fits nowhere else stays on disk, where it is already
    itemsize = shrunk_itemsize(options.quantization, dtype)
    needed = checkpoint.weights_bytes(itemsize, unpacked_bits=unpacked_bits(checkpoint, device))
    free = free_memory(device)
    if options.device_map is not None:
        free = sum(_caps_or_free(options, device))
    if needed > free:
        where = "all devices together have" if options.device_map else f"{device} has"
        raise StartupError(
            f"not enough memory: the weights take about {needed / 2**30:.1f} GiB as {options.quantization or dtype}, "
            f"and {where} {free / 2**30:.1f} GiB free; "
            "choose a smaller model, a smaller `dtype`, a `quantization`, or a `device_map` with an `offload_folder`"
        )


def _caps_or_free(options: HfOptions, device: torch.device) -> Iterator[int]:
    if options.max_memory:
        yield from (parse_bytes(size) for size in options.max_memory.values())
        return
    yield free_memory(torch.device("cpu"))
    if device.type != "cpu":
        for index in range(torch.accelerator.device_count()):
            yield free_memory(torch.device(device.type, index))


def _memory_caps(options: HfOptions) -> dict[int | str, int]:
    """As accelerate wants it: devices by number."""
    return {int(name) if name.isdigit() else name: parse_bytes(size) for name, size in options.max_memory.items()}


def _with_lora(model: Any, folder: Path, *, merge: bool) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise StartupError("`lora` needs peft: pip install 'fastchat-backend-hf[peft]'")
    if not (folder / "adapter_config.json").is_file():
        raise StartupError(f"{folder} is not a LoRA folder: it has no adapter_config.json")
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, folder, local_files_only=True)
    except Exception as error:  # whatever an adapter for another model leads to
        raise StartupError(f"the LoRA adapter does not fit the model: {error}") from error
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


@contextmanager
def _reported(progress: Progress) -> Iterator[None]:
    """Tell transformers' progress bars, as far as this thread draws them, to `progress` instead."""
    thread = threading.get_ident()

    def hook(make_bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        items = args[0] if args else settings.get("iterable")
        if items is None or threading.get_ident() != thread:
            return make_bar(*args, **settings)
        return _counted(items, progress)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _counted(items: Any, progress: Progress) -> Iterator[Any]:
    total = max(len(items), 1)
    step = -(-total // 100)
    for number, item in enumerate(items):
        if number % step == 0:
            progress("loading weights", number / total)
        yield item
    progress("loading weights", 1.0)
