"""Vectors from a language model and from a text encoder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from vllm_answers import needs_vllm, opened

from fastchat_backend_vllm.engine import VllmEngine
from fastchat_serve import Capability, ContextOverflow, Embeddings, EmbedRequest, TextPrompt, TokenPrompt

pytestmark = needs_vllm

TEXTS = ("a cat sat on the mat", "the dog barks", "a cat sat on the mat", "Zoë")


def rows(found: Embeddings) -> NDArray[np.float32]:
    return np.frombuffer(found.data, "<f4").reshape(-1, found.dimensions)


def bert(folder: Path, demo: Path) -> None:
    """A text encoder of two layers with the demonstration model's tokenizer, saved into `folder`."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(demo)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=2048, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
            max_position_embeddings=128, pad_token_id=3,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=["llama", "bert"])
async def engine(
    request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmEngine]:
    if request.param == "llama":
        async with opened(demo, runner="pooling", max_model_len=128) as engine:
            yield engine
        return
    folder = tmp_path_factory.mktemp("bert")
    bert(folder, demo)
    async with opened(folder, max_model_len=128) as engine:
        yield engine


async def test_vectors_have_length_one_and_equal_texts_equal_vectors(engine: VllmEngine) -> None:
    found = await engine.embed(EmbedRequest(id="e", inputs=tuple(map(TextPrompt, TEXTS))))
    vectors = rows(found)

    assert len(found.data) == len(TEXTS) * found.dimensions * 4
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.allclose(vectors[0], vectors[2], atol=1e-4)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-2)
    assert found.prompt_tokens == sum([len(await engine.tokenize(TextPrompt(text))) for text in TEXTS])


async def test_a_text_and_its_tokens_have_one_vector(engine: VllmEngine) -> None:
    ids = await engine.tokenize(TextPrompt(TEXTS[0]))

    by_text, by_ids = rows(await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt(TEXTS[0]), TokenPrompt(ids)))))

    assert np.allclose(by_text, by_ids, atol=1e-5)


async def test_a_text_over_the_context_is_refused_or_cut(engine: VllmEngine) -> None:
    inputs = (TextPrompt("a cat " * 200),)

    with pytest.raises(ContextOverflow):
        await engine.embed(EmbedRequest(id="e", inputs=inputs))
    found = await engine.embed(EmbedRequest(id="e", inputs=inputs, truncate=True))

    assert found.prompt_tokens == 128


async def test_it_embeds_and_does_not_generate(engine: VllmEngine) -> None:
    assert engine.info.capabilities == {Capability.EMBED, Capability.TOKENIZE}
    assert engine.info.context_length == 128
