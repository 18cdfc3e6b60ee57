"""FastChat's model-info JSON: which names are served from where, with which token."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from fastchat_serve import StartupError

__all__ = ["ModelInfo", "read_model_info"]

_OLD_API = "https://api-inference.huggingface.co/models"
"""Where FastChat's examples pointed, and nothing answers any more: hub ids are served by providers now."""


class ModelInfo(Struct, frozen=True):
    """One entry. `model_names` and `conv_template` are read and not used: names are the worker's, and the server has
    the model's chat template."""

    model_path: str = ""
    api_base: str = ""
    token: str = ""
    context_length: int | None = None
    model_names: str | list[str] | None = None
    conv_template: str | None = None

    @property
    def base_url(self) -> str | None:
        """``api_base[/model_path]``, as FastChat builds it; None for a hub id."""
        base = self.api_base.rstrip("/")
        if not base or base == _OLD_API:
            return None
        return f"{base}/{self.model_path}" if self.model_path else base


def read_model_info(file: Path, name: str) -> ModelInfo:
    """The entry called `name`. Reads a file, so not for the loop's thread.

    Raises:
        StartupError: There is none, or the file is not of that form.
    """
    try:
        entries = msgspec.json.decode(file.read_bytes(), type=dict[str, ModelInfo])
    except OSError as error:
        raise StartupError(f"model_info cannot be read: {error}") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise StartupError(f"model_info {file} is not of FastChat's form: {error}") from error
    if name not in entries:
        raise StartupError(f"model_info {file} has no entry {name!r}. It has: {', '.join(sorted(entries)) or 'none'}.")
    return entries[name]
