"""The chat template of a model: its own, or the one that the operator configured instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from fastchat_serve.errors import ConfigError
from fastchat_serve.text.chat_template import ChatTemplate

__all__ = ["VariableType", "chat_template_of", "make_template"]

VariableType = Literal["bool", "int", "float", "str"]
"""What a template's variable that requests may set is, as options name it."""

_TYPES: Mapping[str, type] = MappingProxyType({"bool": bool, "int": int, "float": float, "str": str})


def chat_template_of(
    tokenizer: Any, *, file: Path | None, variables: Mapping[str, VariableType]
) -> ChatTemplate | None:
    """The template of a transformers tokenizer, or that in `file`; None if there is none.

    Args:
        variables: Those that a request may set.

    Raises:
        ConfigError: `file` cannot be read.
        StartupError: The template is broken.
    """
    source = tokenizer.chat_template
    if isinstance(source, Mapping):  # several, by name
        source = source.get("default")
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return make_template(source, special_tokens=special, file=file, variables=variables)


def make_template(
    source: str | None,
    *,
    special_tokens: Mapping[str, str],
    file: Path | None,
    variables: Mapping[str, VariableType],
) -> ChatTemplate | None:
    """The template in `file`, otherwise that of the model, `source`. As `chat_template_of`."""
    if file is not None:
        source = _read(file)
    if not source:
        return None
    return ChatTemplate(
        source, special_tokens=special_tokens, options={name: _TYPES[kind] for name, kind in variables.items()}
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"no such chat template file: {file} ({error})") from error
