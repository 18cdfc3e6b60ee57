"""A model's folder, as the Hugging Face hub lays it out: where it is, what its makers advise, and who the model is.

What backends for such folders share. A folder never touches the network. Anything else is a hub id, which is
downloaded to the hub's cache first (or found there, when offline). ``huggingface_hub`` comes with the backend.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastchat_serve.engine import SamplingParams
from fastchat_serve.errors import StartupError
from fastchat_serve.hookspecs import Progress

__all__ = ["advised_sampling", "file_fingerprint", "find_folder", "fingerprint", "read_json", "weight_files"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SIDE_FILES = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", "1_Pooling/*")
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
_ADVICE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_REMEDY = (
    "Check its spelling and the network, or give the path of a folder; with HF_HUB_OFFLINE=1 nothing but earlier "
    "downloads is looked at."
)
_WEIGHTS = ("*.safetensors", "*.bin")
_SAMPLE_BYTES = 2**20
_SAMPLES = 64
"""Of a large file, this many samples go into the fingerprint: any training changes them all."""


def find_folder(
    model: str,
    *,
    revision: str | None = None,
    with_code: bool = False,
    weights: tuple[str, ...] = _WEIGHTS,
    progress: Progress | None = None,
) -> Path:
    """Where `model`, a folder or a hub id, lies.

    Args:
        revision: Branch, tag or commit of a hub model.
        with_code: Fetch the Python files of a hub model as well.
        weights: Patterns of weight files; those of the first that the hub has are fetched.

    Raises:
        StartupError: There is no such folder or model, or it is none.
    """
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or not _HUB_ID.fullmatch(model):
            raise StartupError(f"no such model folder: {model}")
        folder = _fetched(model, revision, [*_SIDE_FILES, *(["*.py"] if with_code else [])], weights, progress)
    if not (folder / "config.json").is_file():
        raise StartupError(f"{model} is not a model folder: it has no config.json")
    return folder


def weight_files(folder: Path, patterns: Iterable[str] = _WEIGHTS) -> list[Path]:
    """The files with weights, by name; pickles only if there are no safetensors."""
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def read_json(path: Path) -> dict[str, Any]:
    """The file's object, empty if there is no such file. Raises `StartupError` if it is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StartupError(f"{path.name} of the model is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise StartupError(f"{path.name} of the model is no JSON object")
    return found


def advised_sampling(folder: Path) -> SamplingParams:
    """What the model's generation config states, for `EngineInfo.sampling`. Raises `StartupError`."""
    stated = read_json(folder / "generation_config.json")
    return SamplingParams(**{name: stated[name] for name in _ADVICE if isinstance(stated.get(name), int | float)})


def fingerprint(folders: Iterable[Path], *salt: str) -> str:
    """Equal for equal weights, tokenizers and `salt`. Reads at most 64 MiB of each file."""
    named = [
        (path.name, path)
        for folder in folders
        for path in [*(folder / name for name in _IDENTITY_FILES), *weight_files(folder)]
        if path.is_file()
    ]
    return file_fingerprint(named, *salt)


def file_fingerprint(files: Iterable[tuple[str, Path]], *salt: str) -> str:
    """Equal for files that are equal and go by equal names, and equal `salt`. Reads at most 64 MiB of each."""
    digest = blake2b(repr(salt).encode(), digest_size=16)
    for name, path in files:
        digest.update(f"{name}:{path.stat().st_size};".encode())
        for sample in _samples(path):
            digest.update(sample)
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    """The beginning, which is the header of a safetensors file, and more at even distances."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for offset in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
            file.seek(offset)
            yield file.read(_SAMPLE_BYTES)


def _fetched(
    model: str, revision: str | None, side: list[str], weights: tuple[str, ...], progress: Progress | None
) -> Path:
    """Fetch a hub model into the hub's cache; what is there is not fetched again."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    _log_once()
    say = progress or _say_nothing
    say(f"looking up {model}")
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(model, revision=revision, local_files_only=True))
        names = [name for name in HfApi().list_repo_files(model, revision=revision) if "/" not in name]
        pattern = next((pattern for pattern in weights if any(Path(name).match(pattern) for name in names)), None)
        say(f"downloading {model}")
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=[*side, *([pattern] if pattern else [])])
        )
    except RepositoryNotFoundError as error:
        raise StartupError(
            f"no folder {model!r} here, and no such model on the hub (or it is private). {_REMEDY}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise StartupError(
            f"no folder {model!r} here, and the hub cannot be reached to download it. {_REMEDY}"
        ) from error
    except Exception as error:  # whatever the client's HTTP library raises when there is no network
        return _from_cache(model, revision, error)


def _from_cache(model: str, revision: str | None, cause: Exception) -> Path:
    """The network failed: an earlier download will do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        reason = str(cause).strip().split("\n", 1)[0] or type(cause).__name__
        raise StartupError(
            f"no folder {model!r} here, and downloading it failed: {reason.rstrip('.')}. {_REMEDY}"
        ) from cause


def _log_once() -> None:
    """The hub's client prints all that it logs, which whoever has a log would see twice."""
    if logging.getLogger().handlers:
        logging.getLogger("huggingface_hub").handlers.clear()


def _say_nothing(stage: str, fraction: float | None = None) -> None:
    """For callers who want no progress."""
