"""Embeddings: the vectors of each text alone, whatever it is batched with."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from hf_answers import Folder, Opened, answer, asking, until
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastchat_backend_hf.embeddings import Embedder
from fastchat_serve import (
    Capability,
    ContextOverflow,
    Embeddings,
    EmbedRequest,
    EngineError,
    InvalidRequest,
    StartupError,
    TextPrompt,
    TokenPrompt,
)
from fastchat_serve.stepping import SteppingEngine

pytestmark = pytest.mark.anyio

TEXTS = ("short", "a text of more words than the others have " * 3, "ß é 日本", "middle sized one")


def vectors(found: Embeddings) -> np.ndarray:
    return np.frombuffer(found.data, "<f4").reshape(-1, found.dimensions)


def expected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooling: str) -> np.ndarray:
    rows = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            states = model.base_model(ids).last_hidden_state[0]
        pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        rows.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
    return np.stack(rows)


async def embed(engine: SteppingEngine, *texts: str, truncate: bool = False) -> Embeddings:
    async with asyncio.timeout(20):
        return await engine.embed(EmbedRequest(id="e", inputs=tuple(map(TextPrompt, texts)), truncate=truncate))


async def test_a_short_request_is_not_kept_by_a_long_one(opened: Opened) -> None:
    async with opened("bert", prefill_tokens=1) as engine:  # a pass for each text
        long = asyncio.create_task(embed(engine, *["some words"] * 500))
        await until(lambda: engine.current_load().running == 1)
        short = asyncio.create_task(embed(engine, "a word"))
        done, _ = await asyncio.wait([long, short], return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert done == {short}
        assert (await short).data != (await long).data[: 4 * short.result().dimensions]


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("pooling", ["auto", "mean", "cls", "last"])
async def test_each_text_gets_its_own_pooled_and_normalised_vector(
    opened: Opened, tokenizer: PreTrainedTokenizerFast, model: str, pooling: str
) -> None:
    reference = getattr(tiny_models, model)()
    async with opened(model, pooling=pooling, prefill_tokens=64) as engine:
        found = await embed(engine, *TEXTS)
    np.testing.assert_allclose(
        vectors(found), expected(reference, tokenizer, "mean" if pooling == "auto" else pooling), atol=2e-5
    )
    np.testing.assert_allclose(np.linalg.norm(vectors(found), axis=1), 1, atol=1e-5)
    assert found.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


async def test_a_text_encoder_embeds_and_does_not_generate(opened: Opened) -> None:
    async with opened("bert") as engine:
        assert engine.info.capabilities == {Capability.EMBED, Capability.TOKENIZE}
        assert engine.info.context_length == 128


async def test_texts_and_answers_share_the_thread(opened: Opened) -> None:
    async with opened(prefill_tokens=16) as engine:
        well = await answer(engine, asking(max_tokens=30, ignore_eos=True))
        found, got = await asyncio.gather(
            embed(engine, *TEXTS * 4), answer(engine, asking(max_tokens=30, ignore_eos=True))
        )
    assert got.ids == well.ids
    np.testing.assert_allclose(vectors(found)[:4], vectors(found)[4:8], atol=1e-5)


@pytest.mark.parametrize("model", ["llama", "bert"])
async def test_a_text_over_the_context_is_refused_unless_truncation_is_asked_for(opened: Opened, model: str) -> None:
    long = "word " * 500
    async with opened(model, context_length=32) as engine:
        with pytest.raises(ContextOverflow, match="32 tokens"):
            await embed(engine, "fine", long)
        cut = await embed(engine, long, truncate=True)
        ids = (await engine.tokenize(TextPrompt("word " * 60)))[:32]
        same = await engine.embed(EmbedRequest(id="e", inputs=(TokenPrompt(ids),)))
    assert cut.prompt_tokens == 32
    np.testing.assert_allclose(vectors(cut), vectors(same), atol=1e-5)


async def test_an_input_without_tokens_is_refused(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest, match="Input 1"):
            await embed(engine, "fine", "")


async def test_a_cancelled_job_leaves_the_queue(opened: Opened) -> None:
    async with opened(prefill_tokens=1) as engine:
        job = asyncio.create_task(embed(engine, *TEXTS * 50))
        await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await embed(engine, "next")
        assert not engine._jobs


async def test_a_failing_text_ends_its_request_only(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as engine:
        with monkeypatch.context() as patched:

            def fail(self: Embedder, texts: object) -> object:
                raise ValueError("/home/someone/secret")

            patched.setattr(Embedder, "_embed", fail)
            with pytest.raises(EngineError) as caught:
                await embed(engine, "text")
        assert "secret" not in str(caught.value)
        await embed(engine, "text")


def sentence_transformer(folder: Folder, path: Path, pooling: dict[str, object], module: str = "Pooling") -> Path:
    shutil.copytree(folder("bert"), path)
    (path / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{module}"}]))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    return path


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
async def test_pooling_is_read_from_the_model(
    opened: Opened,
    folder: Folder,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: dict[str, object],
    pooling: str,
) -> None:
    async with opened(sentence_transformer(folder, tmp_path / "m", config)) as engine:
        assert engine.info.context_length == 48
        found = await embed(engine, *TEXTS)
    np.testing.assert_allclose(vectors(found), expected(tiny_models.bert(), tokenizer, pooling), atol=2e-5)


@pytest.mark.parametrize(
    ("config", "module", "problem"),
    [({"pooling_mode_max_tokens": True}, "Pooling", "pools"), ({}, "Dense", "'Dense'")],
)
async def test_what_is_not_built_in_is_refused_at_start(
    opened: Opened, folder: Folder, tmp_path: Path, config: dict[str, object], module: str, problem: str
) -> None:
    with pytest.raises(StartupError, match=problem):
        async with opened(sentence_transformer(folder, tmp_path / "m", config, module)):
            pass
