"""Prompts become token ids, and whatever is wrong with them is found on the way."""

from __future__ import annotations

from typing import Any

import pytest

from fastchat_serve import (
    ChatPrompt,
    ContextOverflow,
    EmbedRequest,
    InvalidRequest,
    Message,
    TextPrompt,
    TokenPrompt,
    Unsupported,
)
from fastchat_serve.text import ChatTemplate, Prompts, TokenizerVocabulary, Vocabulary
from tests.sinks import a_request

CONTEXT = 40
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}<|end|>"


@pytest.fixture
def vocabulary(byte_level: Any) -> Vocabulary:
    return TokenizerVocabulary(byte_level, byte_level.get_vocab_size())


@pytest.fixture
def prompts(vocabulary: Vocabulary) -> Prompts:
    return Prompts(vocabulary, ChatTemplate(TEMPLATE, special_tokens={}), context_length=CONTEXT)


def chat(text: str) -> ChatPrompt:
    return ChatPrompt((Message(role="user", content=text),))


def test_a_prompt_of_any_kind_becomes_what_the_model_reads(prompts: Prompts, byte_level: Any) -> None:
    ids = byte_level.encode("hello").ids

    assert prompts.token_ids(TextPrompt("hello")) == ids
    assert prompts.token_ids(TokenPrompt(tuple(ids))) == ids
    assert prompts.token_ids(chat("hello")) == [*ids, byte_level.token_to_id("<|end|>")]
    assert prompts.text(ids) == "hello"


def test_an_answer_may_be_as_long_as_the_context_leaves_room(prompts: Prompts) -> None:
    length = len(prompts.token_ids(TextPrompt("hello")))

    assert prompts.prepare(a_request("hello")).limit == CONTEXT - length
    assert prompts.prepare(a_request("hello", max_tokens=3)).limit == 3
    with pytest.raises(ContextOverflow, match=f"maximum context length is {CONTEXT}"):
        prompts.prepare(a_request("hello", max_tokens=CONTEXT))


@pytest.mark.parametrize("length", [CONTEXT, 10_000_000])
def test_a_prompt_that_fills_the_context_is_refused_however_long(prompts: Prompts, length: int) -> None:
    with pytest.raises(ContextOverflow):
        prompts.prepare(a_request("~" * length))


def test_an_echo_is_made_only_for_those_who_ask_and_once(prompts: Prompts) -> None:
    made = prompts.prepare(a_request("hello", echo=True))

    assert made.echo is not None
    assert (made.echo.text, made.echo.token_ids) == ("hello", made.token_ids)
    assert prompts.prepare(a_request("hello")).echo is None
    assert prompts.prepare(a_request("hello", prompt_logprobs=0)).echo is not None
    assert prompts.prepare(a_request("hello", echo=True, resume_token_ids=(1,))).echo is None, "an earlier run told"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"stop_token_ids": (9999,)}, "stop_token_ids"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"resume_token_ids": (9999,)}, "resume_token_ids"),
    ],
)
def test_ids_that_are_no_tokens_are_refused_by_name(prompts: Prompts, wrong: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompts.prepare(a_request("hello", **wrong))
    assert refused.value.param == param


@pytest.mark.parametrize(
    "prompt", [TokenPrompt((9999,)), TokenPrompt(()), TextPrompt(""), TextPrompt("\ud800")], ids=str
)
def test_a_prompt_that_is_none_is_refused(prompts: Prompts, prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompts.token_ids(prompt)
    assert refused.value.param == "prompt"


def test_a_text_without_tokens_may_stand_for_one(vocabulary: Vocabulary) -> None:
    assert Prompts(vocabulary, None, context_length=CONTEXT, empty_prompt_id=5).token_ids(TextPrompt("")) == [5]


def test_a_model_without_a_template_cannot_chat(vocabulary: Vocabulary) -> None:
    with pytest.raises(Unsupported, match="no chat template"):
        Prompts(vocabulary, None, context_length=CONTEXT).token_ids(chat("hello"))


def test_inputs_over_the_context_are_refused_or_cut_as_the_request_says(prompts: Prompts) -> None:
    long = (TextPrompt("~" * 100), TokenPrompt((3,) * 100))

    cut = prompts.inputs(EmbedRequest(id="e", inputs=long, truncate=True))

    assert [len(ids) for ids in cut] == [CONTEXT, CONTEXT]
    for one in long:
        with pytest.raises(ContextOverflow):
            prompts.inputs(EmbedRequest(id="e", inputs=(one,)))
    with pytest.raises(InvalidRequest, match="Input 1 has no tokens"):
        prompts.inputs(EmbedRequest(id="e", inputs=(TextPrompt("a"), TextPrompt(""))))


def test_a_token_is_shown_with_its_bytes_and_what_is_impossible_as_a_number(vocabulary: Vocabulary) -> None:
    half = vocabulary.encode("ÿ", special=False)[0]
    shown = vocabulary.logprob(half, float("-inf"), [(half, -0.5)])

    assert (shown.token_id, shown.logprob) == (half, -9999.0)
    assert (shown.data, shown.text) == (b"\xc3", "\N{REPLACEMENT CHARACTER}")
    assert shown.top[0].logprob == -0.5
    assert vocabulary.logprob(half, None).logprob is None
