"""A model's folder: where it is, what its JSON files say, and who it is.

A folder never touches the network. Anything else is a hub id, which is downloaded to the hub's cache first (or found
there, when offline).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastchat_serve import Progress, SamplingParams, StartupError

__all__ = ["advised_sampling", "context_length", "find_folder", "fingerprint", "read_json"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ("*.json", "*.jsonl", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja")
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
_SAMPLE_BYTES = 2**20
_SAMPLES = 64
"""Of a large file, so many pieces go into the fingerprint: any training changes them all."""
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
_ABSURD_LENGTH = 10**9
"""Tokenizers that know no limit claim one like this."""


def find_folder(model: str, *, revision: str | None, with_code: bool, progress: Progress) -> Path:
    """Where `model`, a folder or a hub id, lies. Raises `StartupError`."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or not _HUB_ID.fullmatch(model):
            raise StartupError(f"no such model folder: {model}")
        progress(f"downloading {model}")
        folder = _download(model, revision, [*_HUB_FILES, "*.py"] if with_code else [*_HUB_FILES])
    if not (folder / "config.json").is_file():
        raise StartupError(f"{model} is not a model folder: it has no config.json")
    if not any(folder.glob("model*.safetensors")):
        raise StartupError(f"{model} has no weights that mlx reads: model*.safetensors")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The file's object, empty if there is no such file. Raises `StartupError` if it is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StartupError(f"{path.name} of the model is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise StartupError(f"{path.name} of the model is no JSON object")
    return found


def context_length(config: dict[str, Any], tokenizer_limit: int | None) -> int | None:
    """Tokens that a model with this config takes, None if it does not say. A rope scaling stretches them."""
    text = config.get("text_config") or config
    stated = next((limit for name in _CONTEXT_NAMES if isinstance(limit := text.get(name), int) and limit > 0), None)
    if stated is None:
        return tokenizer_limit if tokenizer_limit and tokenizer_limit < _ABSURD_LENGTH else None
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    factor, kind = rope.get("factor"), rope.get("rope_type") or rope.get("type")
    if not isinstance(factor, int | float):
        return stated
    if kind in ("linear", "dynamic"):
        return int(stated * factor)
    if kind == "yarn" and (original := rope.get("original_max_position_embeddings")):
        return max(stated, int(original * factor))
    return stated  # newer kinds state the stretched length


def advised_sampling(folder: Path) -> SamplingParams:
    """What the model's generation config states."""
    stated = read_json(folder / "generation_config.json")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return SamplingParams(**{name: value for name in names if (value := stated.get(name)) is not None})


def fingerprint(folders: Iterable[Path], *salt: str) -> str:
    """Equal for equal weights, tokenizer and `salt`. Reads at most 64 MiB of each file."""
    digest = blake2b(repr(salt).encode(), digest_size=16)
    for folder in folders:
        for path in [*(folder / name for name in _IDENTITY_FILES), *sorted(folder.glob("*.safetensors"))]:
            if path.is_file():
                digest.update(f"{path.name}:{path.stat().st_size};".encode())
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


def _download(model: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch a hub model into the hub's cache; what is there is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise StartupError(f"no folder {model!r} here, and no such model on the hub (or it is private)") from error
    except LocalEntryNotFoundError as error:
        raise StartupError(f"no folder {model!r} here, and the hub cannot be reached to download it") from error
    except Exception as error:  # whatever the client's HTTP library raises
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise StartupError(f"no folder {model!r} here, and downloading it failed: {reason}") from error
