"""What an operator can get wrong, and is told."""

from __future__ import annotations

import asyncio
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamacpp_answers import Opened, answer, asking, saying

from fastchat_backend_llamacpp import library
from fastchat_serve import Capability, ConfigError, StartupError

pytestmark = pytest.mark.anyio


async def test_a_missing_library_is_named_with_the_command(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(library, "_kept", [])
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(StartupError, match="pip install llama-cpp-python"):
        async with opened():
            pass


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "cannot be loaded"), (b"GGUF", "cannot be loaded"), (b"no model at all" * 100, "expected 'GGUF'")],
)
async def test_a_file_that_is_no_model_is_refused(opened: Opened, tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(StartupError, match=why):
        async with opened(file):
            pass


async def test_a_model_that_was_cut_short_is_refused(
    opened: Opened, converted: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "short.gguf"
    file.write_bytes(converted().read_bytes()[:-100_000])
    with pytest.raises(StartupError, match="corrupted or incomplete"):
        async with opened(file):
            pass


async def test_a_folder_with_one_file_will_do(opened: Opened, converted: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(converted(), tmp_path / "model.gguf")
    (tmp_path / "mmproj-model.gguf").write_bytes(b"")
    async with opened(tmp_path) as engine:
        assert (await answer(engine, asking())).ids


@pytest.mark.parametrize("names", [(), ("a.gguf", "b.gguf")])
async def test_a_folder_without_one_file_is_refused(opened: Opened, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(StartupError, match=", ".join(names) or "none"):
        async with opened(tmp_path):
            pass


async def test_what_is_nowhere_is_refused(opened: Opened) -> None:
    with pytest.raises(StartupError, match="no such model"):
        async with opened(Path("nowhere/model.gguf")):
            pass


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kv_cache_tokens": 100, "context_length": 200}, "less than the context"),
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, "[Ff]lash"),
        ({"chat_template": Path("nowhere.jinja")}, "nowhere.jinja"),
        ({"adapters": {"own": Path("nowhere.gguf")}}, "nowhere.gguf"),
        ({"tensor_split": (1.0,) * 10_000}, "devices"),
    ],
)
async def test_options_that_cannot_be_are_refused_with_the_reason(
    opened: Opened, options: dict[str, Any], why: str
) -> None:
    with pytest.raises((StartupError, ConfigError), match=why):
        async with opened(**options):
            pass


async def test_a_quantised_cache_answers_too(opened: Opened) -> None:
    async with opened(cache_type_k="q8_0", cache_type_v="q8_0", flash_attn="on") as engine:
        said = await answer(engine, asking(saying("What is the capital of France?"), max_tokens=30))
    assert "Paris" in said.text


async def test_equal_files_have_equal_fingerprints_and_others_do_not(
    opened: Opened, converted: Callable[..., Path], tmp_path: Path
) -> None:
    async def fingerprint(file: Path | None = None, **options: Any) -> str:
        async with opened(file, **options) as engine:
            return engine.info.fingerprint

    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    copy = shutil.copy(converted(), tmp_path / "other-name.gguf")
    changes = {"model.norm.weight": np.ones(256, np.float32)}
    first = await fingerprint()
    assert await fingerprint(Path(copy), max_batch=2) == first
    others = [
        await fingerprint(chat_template=template),
        await fingerprint(cache_type_k="f16"),
        await fingerprint(converted(changes=changes)),
    ]
    assert len({first, *others}) == 4


async def test_adapters_change_answers_of_those_who_ask_for_them(
    opened: Opened, converted: Callable[..., Path], tmp_path: Path
) -> None:
    from convert import write_adapter

    rng = np.random.default_rng(1)
    name = "model.layers.1.mlp.up_proj.weight"
    a, b = (rng.normal(0, 0.7, shape).astype(np.float32) for shape in ((4, 256), (640, 4)))
    write_adapter(tmp_path / "lora.gguf", {name: (a, b)})
    requests = [asking(saying(text), max_tokens=24, ignore_eos=True) for text in ("Hello!", "Who are you?")]
    adapted = [
        asking(saying(text), max_tokens=24, ignore_eos=True, adapter="own") for text in ("Hello!", "Who are you?")
    ]
    async with opened() as engine:
        plain = [(await answer(engine, request)).ids for request in requests]
    async with opened(converted(changes={name: b @ a})) as engine:
        merged = [(await answer(engine, request)).ids for request in requests]
    async with opened(adapters={"own": tmp_path / "lora.gguf"}) as engine:
        assert Capability.ADAPTERS in engine.info.capabilities
        assert engine.info.adapters == ("own",)
        both = await asyncio.gather(*(answer(engine, request) for request in [*requests, *adapted]))
    assert plain != merged
    assert [said.ids for said in both] == [*plain, *merged]


def test_the_hook_module_imports_nothing_heavy() -> None:
    code = "import sys, fastchat_backend_llamacpp; print({'numpy', 'llama_cpp', 'llguidance'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "set()"
