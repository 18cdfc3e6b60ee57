"""``/v1/completions`` as OpenAI's own client uses it."""

from __future__ import annotations

import pytest
from openai import BadRequestError, NotFoundError

pytestmark = pytest.mark.anyio

PROMPT = "to be or not"


async def streamed(client, **request):
    stream = await client.completions.create(**{"model": "echo", "prompt": PROMPT, "stream": True} | request)
    return [chunk async for chunk in stream]


def text_of(chunks, index=0):
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_a_prompt_is_continued(client):
    answer = await client.completions.create(model="echo", prompt=PROMPT)

    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert [(c.index, c.text, c.finish_reason, c.logprobs) for c in answer.choices] == [(0, PROMPT, "stop", None)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 4, 8)


async def test_a_stream_ends_once_and_reports_usage_if_asked(client):
    """G2."""
    chunks = await streamed(client, stream_options={"include_usage": True})

    assert text_of(chunks) == PROMPT
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1:] == ["stop"]
    assert [c.finish_reason for chunk in chunks for c in chunk.choices].count("stop") == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 8


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", ["one"]),
        (["one"], ["one"]),
        (["one", "two three"], ["one", "two three"]),
        (list(b"one"), ["one"]),
        ([list(b"one"), list(b"two")], ["one", "two"]),
        (["one", list(b"two")], ["one", "two"]),
    ],
    ids=str,
)
async def test_prompts_are_texts_or_token_ids_alone_or_in_batches(client, prompt, texts):
    plain = await client.completions.create(model="echo", prompt=prompt)
    chunks = await streamed(client, prompt=prompt)

    assert [choice.text for choice in plain.choices] == texts
    assert [text_of(chunks, index) for index in range(len(texts))] == texts


async def test_choices_are_numbered_prompt_by_prompt_and_each_prompt_counts_once(client):
    asked = {"prompt": ["one two", "three"], "n": 2}
    plain = await client.completions.create(model="echo", **asked)
    chunks = await streamed(client, **asked, stream_options={"include_usage": True})

    assert [(c.index, c.text) for c in plain.choices] == [(0, "one two"), (1, "one two"), (2, "three"), (3, "three")]
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (3, 6)
    assert chunks[-1].usage == plain.usage
    assert [text_of(chunks, index) for index in range(4)] == ["one two", "one two", "three", "three"]


async def test_echo_puts_the_prompt_before_the_answer(client):
    plain = await client.completions.create(model="echo", prompt=PROMPT, echo=True, max_tokens=2)
    chunks = await streamed(client, echo=True, max_tokens=2)

    assert plain.choices[0].text == text_of(chunks) == PROMPT + "to be"
    assert plain.choices[0].finish_reason == "length"


async def test_echo_alone_scores_the_prompt(client):
    """What evaluation harnesses do: no new token, log-probabilities of the prompt."""
    plain = await client.completions.create(model="echo", prompt=PROMPT, echo=True, max_tokens=0, logprobs=1)

    found = plain.choices[0].logprobs
    assert plain.choices[0].text == PROMPT
    assert found.tokens == ["to", " be", " or", " not"]
    assert found.token_logprobs == [None, 0, 0, 0]
    assert found.top_logprobs == [None, {" be": 0}, {" or": 0}, {" not": 0}]
    assert found.text_offset == [0, 2, 5, 8]
    assert plain.usage.completion_tokens == 0


async def test_log_probabilities_are_the_same_streamed_and_plain(client):
    for echo in (False, True):
        plain = await client.completions.create(model="echo", prompt=PROMPT, echo=echo, logprobs=2)
        parts = [c.logprobs for chunk in await streamed(client, echo=echo, logprobs=2) for c in chunk.choices]
        whole = plain.choices[0].logprobs
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for part in parts if part is not None for value in getattr(part, field)]
            assert joined == getattr(whole, field), (echo, field)
        assert "".join(whole.tokens) == plain.choices[0].text


async def test_text_offsets_point_into_the_text(client):
    answer = await client.completions.create(model="echo", prompt="日本 語 x", echo=True, logprobs=0)
    found = answer.choices[0].logprobs

    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert answer.choices[0].text[offset:].startswith(token)


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"prompt": []}, "prompt", None),
        ({"prompt": [[]]}, "prompt", None),
        ({"prompt": [1, "one"]}, "prompt", None),
        ({"prompt": [-1]}, "prompt[0]", None),
        ({"prompt": [2**31]}, "prompt[0]", None),
        ({"prompt": {"text": "x"}}, "prompt", None),
        ({"prompt": ["x"] * 2049}, "prompt", None),
        ({"prompt": ["x"] * 2048, "n": 2}, "n", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"logprobs": 21}, "logprobs", None),
        ({"suffix": "end"}, "suffix", "unsupported"),
        ({"best_of": 2}, "best_of", "unsupported"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_done_is_refused_by_name(client, asked, param, code, stream):
    """F33."""
    with pytest.raises(BadRequestError) as refused:
        await client.completions.create(**{"model": "echo", "prompt": PROMPT, "stream": stream} | asked)

    assert (refused.value.param, refused.value.code) == (param, code)


async def test_more_than_the_context_holds_is_refused(client):
    with pytest.raises(BadRequestError, match="131072 for the answer") as refused:
        await client.completions.create(model="echo", prompt=PROMPT, max_tokens=131_072)

    assert refused.value.code == "context_length_exceeded"


async def test_an_unknown_model_is_a_typed_404(client):
    with pytest.raises(NotFoundError):
        await client.completions.create(model="other", prompt=PROMPT)
