"""LoRA adapters by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from vllm_answers import CAPITAL, answer, asking, needs_vllm, opened

from fastchat_backend_vllm.engine import VllmEngine
from fastchat_serve import Capability, Unsupported

pytestmark = needs_vllm


def adapter(folder: Path, seed: int) -> Path:
    """One for the demonstration model in PEFT's form, with random weights, saved into `folder`."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    rank, hidden, sizes = 4, 256, {"q_proj": 256, "v_proj": 128}
    tensors = {}
    for layer in range(4):
        for name, size in sizes.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = rng.normal(0, 0.3, (rank, hidden)).astype(np.float32)
            tensors[f"{place}.lora_B.weight"] = rng.normal(0, 0.3, (size, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(sizes), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    return folder


@pytest.fixture(scope="module")
async def engine(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {"one": adapter(folder / "one", 1), "two": adapter(folder / "two", 2)}
    async with opened(demo, adapters=adapters) as engine:
        yield engine


async def test_an_adapter_changes_the_answer_and_only_where_it_is_asked_for(engine: VllmEngine) -> None:
    names = (None, "one", "two", None, "one")
    requests = [asking(CAPITAL, id=f"{i}", max_tokens=24, adapter=name) for i, name in enumerate(names)]

    plain, one, two, plain_again, one_again = await asyncio.gather(*(answer(engine, r) for r in requests))

    assert plain.text == "The capital of France is Paris."
    assert plain.ids == plain_again.ids
    assert one.ids == one_again.ids
    assert len({tuple(plain.ids), tuple(one.ids), tuple(two.ids)}) == 3


async def test_adapters_are_declared_by_name(engine: VllmEngine) -> None:
    assert engine.info.adapters == ("one", "two")
    assert Capability.ADAPTERS in engine.info.capabilities


async def test_an_adapter_that_is_not_there_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(Unsupported, match="no such adapter"):
        await answer(engine, asking(CAPITAL, adapter="three"))


async def test_what_an_adapter_computed_is_nothing_to_the_others(engine: VllmEngine) -> None:
    prompt = tuple(range(4, 304))
    for name, expected in (("one", 0), (None, 0), ("one", 128)):
        found = await answer(engine, asking(prompt, max_tokens=1, adapter=name))
        assert found.last.usage is not None
        assert found.last.usage.cached_tokens >= expected
        assert bool(found.last.usage.cached_tokens) == bool(expected)
