"""Prompts of text and embeddings, as text-generation-inference and its kind have them."""

from __future__ import annotations

import json
from array import array
from typing import Any

import httpx2
import pytest
from hf_asking import Opened, answer_of, asking, events, text_event

from fastchat_serve import (
    Capability,
    EmbedRequest,
    EngineError,
    SamplingParams,
    Secret,
    TextPrompt,
    TokenPrompt,
    Unsupported,
    Usage,
)

pytestmark = pytest.mark.anyio

ENDPOINT = {"base_url": "https://e.example", "server": "tgi"}
PROMPT = TextPrompt("once")


async def answer(opened: Opened, answered: Any, *data: Any, **changes: Any) -> tuple[Any, Any]:
    """The chunks, and what was sent."""
    requests = answered(lambda request: events(*data, done=False))
    async with opened(tasks=("text-generation",), **ENDPOINT) as engine:
        chunks = await answer_of(engine, asking(prompt=PROMPT, **changes))
    return chunks, json.loads(requests[0].content)


async def test_text_comes_without_special_tokens_and_with_counts(opened: Opened, answered: Any) -> None:
    chunks, sent = await answer(
        opened, answered, text_event(" upon"), text_event(" a"), text_event("</s>", "eos_token", special=True)
    )

    assert "".join(chunk.text for chunk in chunks) == " upon a"
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("stop", Usage(2, 3))
    assert sent["inputs"] == "once"


async def test_stop_strings_which_tgi_leaves_in_are_cut_off(opened: Opened, answered: Any) -> None:
    chunks, sent = await answer(
        opened,
        answered,
        text_event(" upon a"),
        text_event(" time", "stop_sequence"),
        sampling=SamplingParams(stop=(" time",)),
    )

    assert "".join(chunk.text for chunk in chunks) == " upon a"
    assert (chunks[-1].stop_match, chunks[-1].finish_reason) == (" time", "stop")
    assert sent["parameters"]["stop"] == [" time"]


async def test_what_is_off_is_not_sent(opened: Opened, answered: Any) -> None:
    end = text_event("x", "length")
    _, greedy = await answer(opened, answered, end, sampling=SamplingParams(temperature=0))
    _, drawn = await answer(opened, answered, end, sampling=SamplingParams(temperature=0.5, top_k=4, seed=3))

    assert greedy["parameters"]["do_sample"] is False
    assert not {"temperature", "top_p", "top_k", "seed"} & set(greedy["parameters"])
    assert {"temperature": 0.5, "top_k": 4, "seed": 3, "do_sample": True}.items() <= drawn["parameters"].items()
    assert "top_p" not in drawn["parameters"]


async def test_log_probabilities_are_reported_if_asked_for(opened: Opened, answered: Any) -> None:
    chunks, sent = await answer(opened, answered, text_event("a"), text_event("b", "length"), logprobs=2)

    rated = [token for chunk in chunks for token in chunk.logprobs]
    assert [(token.token_id, token.text, len(token.top)) for token in rated] == [(7, "a", 2), (7, "b", 2)]
    assert sent["parameters"]["top_n_tokens"] == 2


async def test_an_answer_that_is_cut_off_is_an_error(opened: Opened, answered: Any) -> None:
    with pytest.raises(EngineError, match="cut off"):
        await answer(opened, answered, text_event("a"))


async def test_token_ids_are_refused(opened: Opened, answered: Any) -> None:
    async with opened(tasks=("text-generation",), **ENDPOINT) as engine:
        assert Capability.TOKEN_PROMPT not in engine.info.capabilities
        with pytest.raises(Unsupported):
            await answer_of(engine, asking(prompt=TokenPrompt((1,))))


async def test_vectors_have_length_one(opened: Opened, answered: Any) -> None:
    pytest.importorskip("numpy")
    requests = answered(lambda request: httpx2.Response(200, json=[[3.0, 4.0], [0.0, 2.0]]))
    async with opened("org/embedder", token=Secret("hf_x"), tasks=("feature-extraction",)) as engine:
        found = await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a"), TextPrompt("b"))))

    assert array("f", found.data).tolist() == pytest.approx([0.6, 0.8, 0.0, 1.0])
    assert engine.info.capabilities == {Capability.EMBED}
    assert requests[0].url.path.startswith("/hf-inference/models/org/embedder")


async def test_vectors_of_single_tokens_are_refused(opened: Opened, answered: Any) -> None:
    pytest.importorskip("numpy")
    answered(lambda request: httpx2.Response(200, json=[[[1.0], [2.0]]]))
    async with opened(tasks=("feature-extraction",), **ENDPOINT) as engine:
        with pytest.raises(EngineError, match="one for each input"):
            await engine.embed(EmbedRequest(id="e", inputs=(TextPrompt("a"),)))
