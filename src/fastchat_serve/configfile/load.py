"""The entrance: a `Config` from a file, from the command line alone, and the options of a backend.

Precedence, lowest first: the defaults of `config.py`, the file, environment variables
``FASTCHAT_SERVE_TABLE__KEY``, ``--set table.key=value``. Relative paths are meant from the file's
folder, or from the current folder where the environment or the command line has them.

Every function raises `ConfigError` for the first problem, in the order of the file; the others of
the same kind ride along as its notes (``error.__notes__``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import asdict, replace

from fastchat_serve.config import Config, Secret, Tables, Worker
from fastchat_serve.configfile.decode import Decoder, absolute
from fastchat_serve.configfile.interpolate import interpolate
from fastchat_serve.configfile.places import Place, Places
from fastchat_serve.configfile.rules import broken_rules, key_problem
from fastchat_serve.configfile.sources import Document, apply_environment, apply_override, read_text, read_toml
from fastchat_serve.errors import ConfigError

__all__ = ["config_for_model", "config_from_tables", "config_with_worker", "convert_options", "load_config"]

_COMMENT = re.compile(r"(^|\s)#.*")
_Options = TypeVar("_Options", bound=Struct)


def load_config(path: Path | None, *, overrides: Sequence[str] = (), environ: Mapping[str, str]) -> Config:
    """Read the file `path` (None: no file), the variables `environ` and the ``--set`` arguments `overrides`."""
    document = read_toml(path) if path is not None else Document(Place("command line", directory=Path.cwd()))
    return _finish(document, overrides, environ)


def config_for_model(
    model: str, *, backend: str = "hf", overrides: Sequence[str] = (), environ: Mapping[str, str]
) -> Config:
    """The config of ``fastchat-serve --model ID``: all roles in one process, one worker.

    `overrides` and `environ` reach it as they reach a file: ``worker.0.options.device=cpu``.
    """
    tables = {"controller": {}, "api": {}, "worker": [{"backend": backend, "model": model}]}
    document = Document(Place("command line", directory=Path.cwd()), tables)
    document.values["worker", 0, "backend"] = Place("--backend", directory=Path.cwd())
    document.values["worker", 0, "model"] = Place("--model", directory=Path.cwd())
    return _finish(document, overrides, environ)


def config_from_tables(tables: dict[str, Any], *, overrides: Sequence[str] = (), environ: Mapping[str, str]) -> Config:
    """The config of tables that were made of other arguments of the command line.

    `overrides` and `environ` reach it as they reach a file.
    """
    return _finish(Document(Place("command line", directory=Path.cwd()), tables), overrides, environ)


def config_with_worker(config: Config, table: Mapping[str, Any]) -> Config:
    """`config` with one more worker, the last: `table`, as JSON has a ``[[worker]]``.

    How it is reached is that of the other workers of the process, unless `table` says so itself; a folder is absolute,
    or meant from the current one. Raises `ConfigError` for the key ``worker.N.…``.
    """
    index, places = len(config.worker), Places(Place("body", directory=Path.cwd()))
    tables: dict[str, Any] = {"worker": [{}] * index + [dict(table)]}
    _refuse(_anchor_models(tables, places))
    decoder = Decoder(places)
    worker: Worker = decoder.decode(tables["worker"][index], Worker, ("worker", index))
    _refuse(decoder.problems)
    if config.worker:
        first = config.worker[0]
        shared = ("controllers", "advertise", "reach")
        worker = replace(worker, **{key: getattr(first, key) for key in shared if key not in table})
    extended = replace(config, worker=(*config.worker, worker))
    _refuse(broken_rules(extended, places))
    return extended


def convert_options(config: Config, index: int, options: type[_Options]) -> _Options:
    """The table ``[worker.options]`` of ``config.worker[index]`` as `options`, the backend's own Struct.

    A field of type `pathlib.Path` comes out absolute, as in the rest of the config.
    """
    decoder = Decoder(config.places)
    typed: _Options = decoder.decode(config.worker[index].options, options, ("worker", index, "options"))
    _refuse(decoder.problems)
    return typed


def _finish(document: Document, overrides: Sequence[str], environ: Mapping[str, str]) -> Config:
    apply_environment(document, environ)
    for override in overrides:
        apply_override(document, override)
    places = document.places
    try:
        _refuse(interpolate(document.tables, places, environ))
    except RecursionError:  # dotted keys nest without end and cost the reader of the file nothing
        raise places.error((), "lists or tables are nested too deeply") from None
    _refuse(_anchor_models(document.tables, places))
    decoder = Decoder(places)
    tables: Tables = decoder.decode(document.tables, Tables, ())
    _refuse(decoder.problems)
    tables = _with_keys_from_file(tables, places)
    _refuse(broken_rules(tables, places))
    return Config(**asdict(tables), places=places)


def _refuse(problems: Iterable[ConfigError]) -> None:
    """Raise the first of `problems`, if there is one, with the others as notes."""
    by_place = sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))
    if by_place:
        first, *others = by_place
        for other in others:
            first.add_note(str(other))
        raise first


def _anchor_models(tables: dict[str, Any], places: Places) -> Iterable[ConfigError]:
    """Make each model that is a folder absolute, in place; yield those that must be one and are not there."""
    workers = tables.get("worker")
    for index, worker in enumerate(workers if isinstance(workers, list) else ()):
        model = worker.get("model") if isinstance(worker, dict) else None
        if not isinstance(model, str) or not model:
            continue
        path = ("worker", index, "model")
        try:
            folder = absolute(model, places.of(path).directory)
        except ValueError as error:
            yield places.error(path, str(error))
            continue
        if _exists(folder):
            worker["model"] = str(folder)
        elif Path(model).is_absolute() or model.startswith(("./", "../", "~")):
            yield places.error(path, f"no such folder: {folder}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a character no path can have
        return False


def _with_keys_from_file(tables: Tables, places: Places) -> Tables:
    """`tables`, with the keys of `api.keys_file` after those of `api.keys`."""
    if tables.api is None or tables.api.keys_file is None:
        return tables
    file = tables.api.keys_file
    try:
        lines = read_text(file).split("\n")
    except ConfigError as error:
        raise places.error(("api", "keys_file"), str(error)) from None
    keys = []
    for number, line in enumerate(lines, 1):
        text = _COMMENT.sub("", line).strip()
        if not text:
            continue
        key = Secret(text)
        if problem := key_problem(key):
            column = len(line) - len(line.lstrip()) + 1
            raise ConfigError(problem, file=str(file), line=number, column=column, key="api.keys_file")
        keys.append(key)
    return replace(tables, api=replace(tables.api, keys=(*tables.api.keys, *keys)))
