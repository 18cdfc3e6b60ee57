"""A model's folder: where it is, and who the model is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastchat_serve import SamplingParams, StartupError

__all__ = ["advised_sampling", "fingerprint", "folder_of"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.safetensors", "*.py", "1_Pooling/*")
_IDENTITY_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""What, beside weights and chat template, decides which tokens a request becomes and where its answer ends."""
_ADVICE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SAMPLE = 2**20
_SAMPLES = 64
"""Of a large file, this many samples of `_SAMPLE` bytes go into the fingerprint: any training changes them all."""


def folder_of(model: str, revision: str | None) -> Path:
    """The folder of `model`: itself, or a hub model's in the hub's cache, fetched if need be. Raises `StartupError`."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or not _HUB_ID.fullmatch(model):
            raise StartupError(f"no such model folder: {model}")
        folder = _fetched(model, revision)
    if not (folder / "config.json").is_file():
        raise StartupError(f"{model} is not a model folder: it has no config.json")
    return folder


def _fetched(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*_HUB_FILES]))
    except Exception as error:  # the hub's client raises many things; all mean that there is no model
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StartupError(f"{model} is no folder, and cannot be had from the hub: {reason}") from error


def advised_sampling(folder: Path) -> SamplingParams:
    """What the model's generation config states."""
    try:
        stated = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return SamplingParams()
    advice: dict[str, Any] = {name: stated[name] for name in _ADVICE if isinstance(stated.get(name), int | float)}
    return SamplingParams(**advice)


def fingerprint(folder: Path, *salt: str) -> str:
    """Equal for equal weights, tokenizer and `salt`. Reads at most 64 MiB of each file."""
    digest = blake2b(repr(salt).encode(), digest_size=16)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for path in [*(folder / name for name in _IDENTITY_FILES), *weights]:
        if path.is_file():
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
            for block in _samples(path):
                digest.update(block)
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    stride = max(_SAMPLE, size // _SAMPLES)
    with path.open("rb") as file:
        for offset in range(0, size, stride):
            file.seek(offset)
            yield file.read(_SAMPLE)
