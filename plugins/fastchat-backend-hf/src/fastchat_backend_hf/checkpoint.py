"""A model folder before it is loaded: where it is, what it holds, how big it is, who it is.

A folder never touches the network. Anything else is a hub id, which is downloaded to the hub's cache first
(or found there, when offline) and is a folder from then on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
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

__all__ = ["Checkpoint", "Kind", "fingerprint", "open_checkpoint", "read_json"]

Kind = Literal["causal", "encoder-decoder", "encoder"]

_WEIGHTS = ("*.safetensors", "*.bin")
_HUB_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "1_Pooling/*")
_IDENTITY_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""What, beside weights and chat template, decides which tokens a request becomes and where its answer ends."""
_PLAIN_NUMBERS = ("F64", "F32", "F16", "BF16")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAMPLE = 2**20
_SAMPLES = 64
"""Of a large file, this many samples of `_SAMPLE` bytes go into the fingerprint: any training changes them all."""


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
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or not _HUB_ID.fullmatch(model):
            raise StartupError(f"no such model folder: {model}")
        folder = _download(model, revision, trust_remote_code, progress)
    if not (folder / "config.json").is_file():
        raise StartupError(f"{model} is not a model folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises whatever a broken config leads to
        raise StartupError(f"the config.json of {model} cannot be used: {_first_line(error)}") from error
    checkpoint = Checkpoint(folder, config, _kind(model, config, trust_remote_code))
    if not checkpoint.weight_files:
        raise StartupError(f"{model} has no weights: neither .safetensors nor .bin files")
    return checkpoint


def weight_files(folder: Path) -> list[Path]:
    """The files with weights, by name; pickles only if there are no safetensors."""
    return next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def read_json(path: Path) -> Any:
    """The file's content, None if there is no such file. Raises `StartupError` if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StartupError(f"{path.name} of the model is not valid JSON: {error}") from error


def fingerprint(folders: list[Path], *salt: str) -> str:
    """Equal for equal weights, tokenizer and `salt`. Reads at most 64 MiB of each file."""
    digest = blake2b(repr(salt).encode(), digest_size=16)
    for folder in folders:
        for path in [*(folder / name for name in _IDENTITY_FILES), *weight_files(folder)]:
            if path.is_file():
                digest.update(f"{path.name}:{path.stat().st_size};".encode())
                for block in _samples(path):
                    digest.update(block)
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    """The beginning, which is the header of a safetensors file, and more at even distances."""
    size = path.stat().st_size
    stride = max(_SAMPLE, size // _SAMPLES)
    with path.open("rb") as file:
        for offset in range(0, size, stride):
            file.seek(offset)
            yield file.read(_SAMPLE)


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


def _download(model: str, revision: str | None, trust_remote_code: bool, progress: Progress) -> Path:
    """Fetch a hub model into the hub's cache; what is there is not fetched again."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    progress(f"looking up {model}")
    wanted = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(model, revision=revision, local_files_only=True))
        files = HfApi().list_repo_files(model, revision=revision)
        pattern = next((p for p in _WEIGHTS if any(Path(name).match(p) and "/" not in name for name in files)), None)
        progress(f"downloading {model}")
        found = snapshot_download(model, revision=revision, allow_patterns=[*wanted, *([pattern] if pattern else [])])
    except RepositoryNotFoundError as error:
        raise StartupError(f"no folder {model!r} here, and no such model on the hub (or it is private)") from error
    except LocalEntryNotFoundError as error:
        raise StartupError(f"no folder {model!r} here, and the hub cannot be reached to download it") from error
    except Exception as error:  # whatever the client's HTTP library raises when there is no network
        return _from_cache(model, revision, error)
    return Path(found)


def _from_cache(model: str, revision: str | None, cause: Exception) -> Path:
    """The network failed: an earlier download will do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise StartupError(f"no folder {model!r} here, and downloading it failed: {_first_line(cause)}") from cause


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
