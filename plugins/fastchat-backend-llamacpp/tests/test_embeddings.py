"""Texts as vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llamacpp_answers import Opened, answer, asking, until
from numpy.typing import NDArray

from fastchat_serve import Capability, ContextOverflow, EmbedRequest, InvalidRequest, TextPrompt, TokenPrompt
from fastchat_serve.stepping import SteppingEngine

pytestmark = pytest.mark.anyio


async def vectors(
    engine: SteppingEngine, *inputs: str | tuple[int, ...], truncate: bool = False
) -> NDArray[np.float32]:
    prompts = tuple(TextPrompt(text) if isinstance(text, str) else TokenPrompt(text) for text in inputs)
    async with asyncio.timeout(60):
        found = await engine.embed(EmbedRequest(id="e", inputs=prompts, truncate=truncate))
    return np.frombuffer(found.data, "<f4").reshape(len(inputs), found.dimensions)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
async def test_vectors_have_length_one_and_are_the_same_alone_and_together(opened: Opened, pooling: str) -> None:
    texts = ["Hello", "A fox lives near the river.", "b " * 40, "count the boats"]
    async with opened(embeddings=True, pooling=pooling) as engine:
        together = await vectors(engine, *texts)
        alone = np.concatenate([await vectors(engine, text) for text in texts])
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert together == pytest.approx(alone, abs=1e-4)
    assert abs(together[0] @ together[1]) < 0.999


async def test_a_text_longer_than_a_batch_is_pooled_over_all_of_it(opened: Opened) -> None:
    """The last token of a long text, alone among the batches, has seen those before it."""
    tokens = tuple(5 + number % 900 for number in range(600))
    async with opened(embeddings=True, pooling="last") as engine:
        long = await vectors(engine, tokens)
        other = await vectors(engine, (9, *tokens[1:]))
        again = await vectors(engine, tokens)
    assert long.tolist() == again.tolist()
    assert np.abs(long - other).max() > 1e-6


async def test_a_file_says_how_it_wants_to_be_pooled(opened: Opened, converted: Callable[..., Path]) -> None:
    import gguf

    file = converted(pooling=gguf.PoolingType.LAST)
    async with opened(file) as engine:
        assert Capability.EMBED in engine.info.capabilities
        said = await vectors(engine, "A fox")
    async with opened(embeddings=True, pooling="last") as engine:
        assert said == pytest.approx(await vectors(engine, "A fox"), abs=1e-5)


async def test_a_model_for_answers_embeds_only_if_asked_to(opened: Opened) -> None:
    async with opened() as engine:
        assert Capability.EMBED not in engine.info.capabilities


async def test_what_is_too_long_is_refused_or_cut(opened: Opened) -> None:
    async with opened(embeddings=True, context_length=64) as engine:
        with pytest.raises(ContextOverflow):
            await vectors(engine, (5,) * 65)
        assert (await vectors(engine, (5,) * 65, truncate=True)).tolist() == (await vectors(engine, (5,) * 64)).tolist()
        with pytest.raises(InvalidRequest):
            await vectors(engine, "")


async def test_texts_are_embedded_while_answers_go_on_and_can_be_given_up(opened: Opened) -> None:
    async with opened(embeddings=True) as engine:
        stream = engine.generate_stream(asking(max_tokens=None, ignore_eos=True))
        await anext(stream)
        assert len(await vectors(engine, *["some words"] * 50)) == 50
        given_up = asyncio.create_task(vectors(engine, *["many words " * 30] * 200))
        await asyncio.sleep(0)
        given_up.cancel()
        await anext(stream)
        await stream.aclose()
        assert (await answer(engine, asking())).ids
        await until(lambda: engine.current_load().running == 0)


@pytest.mark.parametrize("pooling", ["MEAN", "CLS", "LAST"])
async def test_a_text_encoder_embeds_and_does_nothing_else(
    opened: Opened, library: None, tmp_path: Path, pooling: str
) -> None:
    """Its vectors are those that numpy finds, within what llama.cpp's rounding in attention leaves."""
    import gguf
    from tiny_bert import TinyBert

    bert = TinyBert()
    bert.write(tmp_path / "bert.gguf", gguf.PoolingType[pooling])
    texts = [(2, 5, 6, 7, 8, 9, 10, 12, 3), (2, 6, 11, 3), tuple(5 + number % 8 for number in range(48))]
    expected = np.stack([_pooled(bert.states(text), pooling) for text in texts])
    async with opened(tmp_path / "bert.gguf") as engine:
        assert engine.info.capabilities == {Capability.EMBED, Capability.TOKENIZE}
        assert engine.info.context_length == 48
        assert await engine.tokenize(TextPrompt("The fox lives near a river.")) == texts[0]
        together = await vectors(engine, *texts)
        alone = np.concatenate([await vectors(engine, text) for text in texts])
    assert together == pytest.approx(expected, abs=2e-3)
    assert alone == pytest.approx(together, abs=1e-4)


def _pooled(states: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    vector = {"MEAN": states.mean(0), "CLS": states[0], "LAST": states[-1]}[pooling]
    return np.asarray(vector / np.linalg.norm(vector))
