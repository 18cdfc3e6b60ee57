"""Where the GGUF file is, and who it is.

A file or folder never touches the network. Anything else names a file on the Hugging Face hub, which is downloaded to
the hub's cache first, or found there when offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fastchat_serve import Progress, StartupError
from fastchat_serve.checkpoint import file_fingerprint

__all__ = ["find_file", "fingerprint"]

_HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+):(?P<file>[\w./-]+\.gguf)")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""llama.cpp finds the other parts of a model by the first."""
_PROJECTOR = "mmproj"
"""In the names of files that only turn images into tokens."""


def find_file(model: str, progress: Progress) -> Path:
    """What `model` means: a file, a folder with one, or ``owner/repository:file.gguf``. Raises `StartupError`."""
    path = Path(model)
    if path.is_dir():
        return _only_file(path)
    if path.is_file():
        return path
    if match := _HUB_FILE.fullmatch(model):
        return _download(match["repository"], match["file"], progress)
    raise StartupError(
        f"no such model: {model}; give a .gguf file, a folder with one, or one on the hub: owner/repository:file.gguf"
    )


def fingerprint(file: Path, *salt: str) -> str:
    """Equal for equal files and `salt`. Reads at most 64 MiB of each part."""
    return file_fingerprint((("", part) for part in _parts(file)), *salt)


def _only_file(folder: Path) -> Path:
    found = sorted(
        path for path in folder.glob("*.gguf") if not _LATER_PART.search(path.name) and _PROJECTOR not in path.name
    )
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise StartupError(f"{folder} must hold one .gguf file, or the model must name one. There are: {names}")
    return found[0]


def _parts(file: Path) -> Iterable[Path]:
    first = re.search(r"-00001(-of-\d{5}\.gguf)$", file.name)
    return sorted(file.parent.glob(f"{file.name[: first.start()]}-?????{first[1]}")) if first else [file]


def _download(repository: str, file: str, progress: Progress) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise StartupError(
            "a model on the hub needs huggingface_hub: pip install 'fastchat-backend-llamacpp[hub]'"
        ) from error
    progress(f"downloading {repository}:{file}")
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # whatever the client's HTTP library raises, or the hub refuses
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise StartupError(f"{repository}:{file} cannot be downloaded: {reason}") from error
