"""How a model wants token vectors made into one, as sentence-transformers writes it down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastchat_backend_hf.embeddings import Pooling
from fastchat_serve import StartupError
from fastchat_serve.checkpoint import read_json

__all__ = ["read_max_length", "read_pooling"]

_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path) -> Pooling:
    """What ``1_Pooling/config.json`` says; without that file, the mean. Raises `StartupError` for other ways."""
    for module in _modules(folder / "modules.json"):
        name = str(module.get("type", "")).rpartition(".")[2]
        if name not in _KNOWN_MODULES:
            raise StartupError(f"this embedding model has a module {name!r}, which the hf backend does not run")
    config = read_json(folder / "1_Pooling" / "config.json")
    if not config:
        return "mean"
    wanted = {mode for flag, mode in _FLAGS.items() if config.get(flag)}
    wanted |= {_MODES[name] for name in (config.get("pooling_mode"),) if name in _MODES}
    if len(wanted) != 1:
        raise StartupError(
            "this embedding model pools in a way that the hf backend does not; set `pooling` to override"
        )
    return wanted.pop()


def read_max_length(folder: Path) -> int | None:
    """The length sentence-transformers cuts texts to, if the model comes with one."""
    limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return limit if isinstance(limit, int) and limit > 0 else None


def _modules(path: Path) -> list[dict[str, Any]]:
    """What the texts go through, in order; empty if the file is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StartupError(f"{path.name} of the model is not valid JSON: {error}") from error
    if not (isinstance(found, list) and all(isinstance(module, dict) for module in found)):
        raise StartupError(f"{path.name} of the model is no list of modules")
    return found
