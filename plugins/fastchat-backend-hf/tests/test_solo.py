"""Models whose rows cannot share a pass: same contract, same tokens, and they say so."""

from __future__ import annotations

import asyncio
import random

import pytest
import tiny_models
import torch
from hf_answers import Opened, answer, asking

from fastchat_backend_hf.adapters import Adapters
from fastchat_backend_hf.batching import _obstacle
from fastchat_backend_hf.cells import _BlockLayer
from fastchat_backend_hf.reading import Reading
from fastchat_backend_hf.solo import SoloRunner

pytestmark = pytest.mark.anyio


def prompts(count: int, longest: int) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(4, 1000) for _ in range(rng.randint(3, longest))] for _ in range(count)]


@pytest.mark.parametrize("model", ["hybrid_gemma", "mamba", "short_window"])
async def test_decoders_with_other_caches_run_one_at_a_time(opened: Opened, model: str) -> None:
    reference = getattr(tiny_models, model)()
    asked = prompts(5, 30)
    async with opened(model) as engine:
        assert any("one at a time" in note for note in engine.info.notes)
        got = await asyncio.gather(*(answer(engine, asking(p, max_tokens=20, ignore_eos=True)) for p in asked))
    for prompt, one in zip(asked, got, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=None,
            attention_mask=torch.ones(1, len(prompt)),
        )
        assert one.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("model", ["hybrid_gemma", "mamba", "short_window"])
async def test_a_long_prompt_costs_the_logits_of_one_token(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Those of all its tokens take gigabytes: 262144 words of vocabulary times 8000 tokens for a Gemma."""
    positions: list[int] = []
    forward = torch.nn.Linear.forward

    def counted(self: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
        if self.out_features == tiny_models.VOCABULARY:
            positions.append(states.shape[1])
        return forward(self, states)

    async with opened(model) as engine:
        monkeypatch.setattr(torch.nn.Linear, "forward", counted)
        await answer(engine, asking(range(5, 105), max_tokens=3, ignore_eos=True))
    assert positions == [1, 1, 1]


async def test_a_window_over_the_whole_context_is_no_obstacle(opened: Opened) -> None:
    reference = tiny_models.short_window()
    asked = prompts(4, 10)
    async with opened("short_window", context_length=16) as engine:
        assert engine.info.notes == ()
        got = await asyncio.gather(*(answer(engine, asking(p, max_tokens=5, ignore_eos=True)) for p in asked))
    for prompt, one in zip(asked, got, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=5,
            eos_token_id=None,
            attention_mask=torch.ones(1, len(prompt)),
        )
        assert one.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("method", "broken", "note"),
    [
        ("get_seq_length", lambda self: 0, "output changes"),  # so that the mask hides all but the first token
        ("get_mask_sizes", None, "does not take a shared cache"),
    ],
)
async def test_a_model_that_cannot_share_a_pass_is_found_out(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, method: str, broken: object, note: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(_BlockLayer, method, broken)
        async with opened() as engine:
            assert any("one at a time" in one and note in one for one in engine.info.notes)
            alone = await answer(engine, asking())
    async with opened() as engine:
        assert (await answer(engine, asking())).ids == alone.ids


@pytest.mark.parametrize(("rope_type", "original"), [("dynamic", 512), ("longrope", 128)])
def test_positions_that_depend_on_the_whole_pass_are_an_obstacle(rope_type: str, original: int) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 128}
    rope = {"rope_type": rope_type, "factor": 4.0, "rope_theta": 1e4} | (factors if rope_type == "longrope" else {})
    config = tiny_models.llama_config(rope_parameters=rope)
    assert _obstacle(config, original) is None
    assert f"context_length of {original}" in str(_obstacle(config, original + 1))


def test_a_row_that_goes_takes_along_what_it_has_computed() -> None:
    runner = SoloRunner(tiny_models.llama(), budget_tokens=64, adapters=Adapters())
    for row in range(3):
        runner.join(Reading([row]))
        runner._passed.append(torch.tensor([float(row)]))  # as when their logits could not be stacked
    runner.drop(0)
    assert runner.decode([5, 5]).flatten().tolist() == [2.0, 1.0]
