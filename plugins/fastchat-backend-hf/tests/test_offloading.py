"""Layers spread over devices, or left on disk: slower, and the same answers."""

from __future__ import annotations

import asyncio
import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hf_answers import Opened, answer, asking

from fastchat_backend_hf import HfOptions
from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_serve import StartupError, TextPrompt

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks transformers for it
]

SMALL = {"device_map": "auto", "max_memory": {"cpu": "6MB"}}


def demo() -> Path:
    pytest.importorskip("fastchat_model_demo")
    return Path(str(importlib.resources.files("fastchat_model_demo") / "weights"))


async def test_layers_may_be_spread_by_accelerate(opened: Opened) -> None:
    async with opened() as engine:
        plain = await answer(engine, asking())
    async with opened(device_map="sequential", max_memory={"cpu": "1GiB"}) as engine:
        assert (await answer(engine, asking())).ids == plain.ids
        assert engine.info.notes == ()


async def test_a_model_without_room_answers_from_disk(opened: Opened, tmp_path: Path) -> None:
    """The embedded model, in 6 MB instead of 13: rows still share passes, as each reads all weights anew."""
    requests = [asking(TextPrompt(text), id=text, max_tokens=12) for text in ("Hello", "The sun is", "1 + 1 =")]
    async with opened(demo(), dtype="float32") as engine:
        plain = await asyncio.gather(*(answer(engine, request) for request in requests))
    async with opened(demo(), dtype="float32", offload_folder=tmp_path, **SMALL) as engine:
        assert any("fetched from the disk for every pass" in note for note in engine.info.notes)
        assert engine.info.device == "cpu"
        generation = engine._loaded.generation
        assert generation is not None
        assert isinstance(generation._runner, BatchRunner)
        assert any(parameter.is_meta for parameter in generation._runner._model.parameters())
        got = await asyncio.gather(*(answer(engine, request) for request in requests))
        assert (await engine.tokenize(TextPrompt("Hello"))) != ()
    assert [one.text for one in got] == [one.text for one in plain]


async def test_adapters_lie_beside_layers_on_disk(opened: Opened, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    peft.get_peft_model(tiny_models.llama(), config).save_pretrained(tmp_path / "adapter")
    adapters = {"x": tmp_path / "adapter"}
    async with opened(adapters=adapters) as engine:
        plain = [await answer(engine, asking(adapter=name)) for name in ("x", None)]
    spread = {"device_map": "auto", "max_memory": {"cpu": "300KB"}, "offload_folder": tmp_path / "offload"}
    async with opened(adapters=adapters, **spread) as engine:
        assert any("from the disk" in note for note in engine.info.notes)
        assert [(await answer(engine, asking(adapter=name))).ids for name in ("x", None)] == [one.ids for one in plain]
    with pytest.raises(StartupError, match="`lora` cannot be merged into layers that are offloaded"):
        async with opened(lora=adapters["x"], **spread):
            pass


async def test_nothing_stays_on_disk_unasked(opened: Opened) -> None:
    with pytest.raises(StartupError, match=r"not enough memory: .*`device_map` with an `offload_folder`"):
        async with opened(demo(), dtype="float32", **SMALL):
            pass


@pytest.mark.parametrize("option", [{"offload_folder": Path("somewhere")}, {"max_memory": {"cpu": "1GiB"}}])
def test_what_only_a_device_map_makes_sense_of_is_refused_without(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only works with device_map"):
        HfOptions(**option)
