"""From ``[[worker]]`` to a worker, and what reaches one that is made in another process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest

from fastchat_serve.config import Config
from fastchat_serve.configfile.load import load_config
from fastchat_serve.errors import ConfigError
from fastchat_serve.making import make_local_worker, make_worker
from fastchat_serve.plugins import Plugins
from fastchat_serve.worker.local import LocalWorker
from fastchat_serve.worker.process import ProcessWorker
from tests.end_to_end.process import install_plugin

pytestmark = pytest.mark.anyio

CONFIG = """
[controller]
[api]
[[worker]]
backend = "telling"
concurrency = 3
queue = 1
placement = "{placement}"
options = {{ key = "open sesame", folder = "here", {more} }}
[worker.timeouts]
first_token_s = inf
"""

TELLING = """
from dataclasses import dataclass
from pathlib import Path
from msgspec import Struct
from msgspec.structs import replace
from fastchat_serve import CONTRACT, Secret, hookimpl
from fastchat_serve.engines.echo import EchoEngine, EchoOptions

class Telling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: Secret
    folder: Path
    size: int = 3
    note: str | None = None

@hookimpl
def register_engines(register):
    register("telling", open_telling, contract=CONTRACT, options=Telling)

def open_telling(setup):
    options = setup.options
    told = (options.key.reveal(), str(options.folder), str(options.size), str(options.note))
    engine = EchoEngine(EchoOptions())
    engine.info = replace(engine.info, notes=told)
    return engine
"""


@pytest.fixture(autouse=True)
def telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin whose engines tell what options they were given; here, and in children."""
    install_plugin(tmp_path, "telling", TELLING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def a_config(tmp_path: Path, placement: str, more: str = "size = 7") -> Config:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(placement=placement, more=more))
    return load_config(path, environ={})


def no_progress(stage: str, fraction: float | None = None) -> None:
    """Nobody watches."""


def test_placement_says_where_a_worker_runs(tmp_path: Path) -> None:
    loop, process = a_config(tmp_path, "loop"), a_config(tmp_path, "process")
    assert isinstance(make_worker(loop, 0, Plugins(), no_progress), LocalWorker)
    assert isinstance(make_worker(process, 0, Plugins(), no_progress), ProcessWorker)
    assert isinstance(make_local_worker(process, 0, Plugins(), no_progress), LocalWorker)


@pytest.mark.parametrize("placement", ["loop", "process"])
async def test_its_engine_is_given_the_same_options_wherever_it_runs(tmp_path: Path, placement: str) -> None:
    worker = await anyio.to_thread.run_sync(
        lambda: make_worker(a_config(tmp_path, placement), 0, Plugins(), no_progress)
    )
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(30):
            await tasks.start(worker.run)
        assert worker.info.notes == ("open sesame", str(tmp_path / "here"), "7", "None")
        assert (worker.load().slots, worker.load().queue_limit) == (3, 1)
        worker.stop()


@pytest.mark.parametrize("placement", ["loop", "process"])
def test_a_mistake_in_its_options_is_found_before_anything_starts(tmp_path: Path, placement: str) -> None:
    with pytest.raises(ConfigError, match=r"worker\.0\.options\.size: expected an integer"):
        make_worker(a_config(tmp_path, placement, 'size = "large"'), 0, Plugins(), no_progress)


def test_no_key_is_shown_by_a_worker_that_carries_it(tmp_path: Path) -> None:
    worker = make_worker(a_config(tmp_path, "process"), 0, Plugins(), no_progress)
    assert "sesame" not in repr(worker)
