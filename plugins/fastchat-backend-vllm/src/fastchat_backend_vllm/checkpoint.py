"""Who a model is: a fingerprint of what decides its answers."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

__all__ = ["fingerprint", "local_folder"]

_IDENTITY_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "quantize_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""What, beside weights and chat template, decides which tokens a request becomes and where its answer ends."""
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SAMPLE = 2**20
_SAMPLES = 64
"""Of a large file, this many samples of `_SAMPLE` bytes are read: any training changes them all."""


def local_folder(model: str, revision: str | None) -> Path | None:
    """Where the files of `model` are, once vLLM has loaded it; None if they are not in the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def fingerprint(folders: list[Path], *salt: str) -> str:
    """Equal for equal files and `salt`. Reads at most 64 MiB of each file."""
    digest = blake2b(repr(salt).encode(), digest_size=16)
    for folder in folders:
        weights = next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
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
