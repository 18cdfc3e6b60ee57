"""SGLang's outputs become chunks."""

from __future__ import annotations

from typing import Any

import pytest
from sglang_answers import asking

from fastchat_backend_sglang.answer import AnswerInTheMaking
from fastchat_serve import Chunk, GenerateRequest, PromptEcho, Usage
from fastchat_serve.text import PreparedPrompt, Vocabulary

END = 2


class Made:
    """An answer to a prompt of two tokens, in the making."""

    def __init__(self, vocabulary: Vocabulary, request: GenerateRequest, echo: PromptEcho | None = None) -> None:
        prepared = PreparedPrompt((1, 202), request.sampling.max_tokens or 100, echo)
        self.making = AnswerInTheMaking(request, prepared, vocabulary, frozenset({END}))

    def feed(self, *tokens: int, reason: dict[str, Any] | None = None, **meta: Any) -> Chunk:
        chunk = self.making.feed({"output_ids": list(tokens), "meta_info": {"finish_reason": reason} | meta})
        assert chunk is not None
        return chunk


def ids(vocabulary: Vocabulary, text: str) -> list[int]:
    encoded = vocabulary.encode(text, special=False)
    return encoded


def test_the_stop_token_counts_and_is_no_text(vocabulary: Vocabulary) -> None:
    made = Made(vocabulary, asking())
    said = made.feed(*ids(vocabulary, "hello"))
    last = made.feed(END, reason={"type": "stop", "matched": END}, cached_tokens=1)
    assert (said.text + last.text, last.finish_reason, last.stop_match) == ("hello", "stop", END)
    assert last.usage == Usage(2, len(ids(vocabulary, "hello")) + 1, 1)


def test_what_comes_after_a_stop_string_is_dropped(vocabulary: Vocabulary) -> None:
    made = Made(vocabulary, asking(stop=("c",)))
    chunk = made.feed(*(ids(vocabulary, char)[0] for char in "abcde"))
    assert (chunk.text, chunk.finish_reason, chunk.stop_match) == ("ab", "stop", "c")
    assert chunk.usage == Usage(2, 3)
    assert len(chunk.token_ids) == 3
    assert made.making.complete


def test_half_a_character_waits_for_its_other_half(vocabulary: Vocabulary) -> None:
    made = Made(vocabulary, asking())
    first, *others = ids(vocabulary, "𝄞")
    assert others
    begun = made.feed(first)
    assert (begun.text, begun.token_ids) == ("", (first,))
    assert made.feed(*others).text == "𝄞"


def test_an_answer_cut_short_ends_by_length(vocabulary: Vocabulary) -> None:
    made = Made(vocabulary, asking(max_tokens=1))
    chunk = made.feed(*ids(vocabulary, "a"), reason={"type": "length", "length": 1})
    assert (chunk.finish_reason, chunk.stop_match) == ("length", None)


def test_own_stop_tokens_hold_where_those_of_the_model_do_not(vocabulary: Vocabulary) -> None:
    """SGLang told to ignore the end of the text ignores ``stop_token_ids`` as well."""
    token = ids(vocabulary, "a")[0]
    made = Made(vocabulary, asking(ignore_eos=True, stop_token_ids=(token,), min_tokens=2))
    assert made.feed(token, END).finish_reason is None
    assert made.feed(token).stop_match == token


def test_alternatives_are_as_many_as_asked_for(vocabulary: Vocabulary) -> None:
    made = Made(vocabulary, asking(logprobs=1))
    chunk = made.feed(
        5,
        output_token_logprobs=[(-0.5, 5, None)],
        output_top_logprobs=[[(-0.25, 6, None), (-0.5, 5, None)]],
    )
    assert chunk.logprobs is not None
    (entry,) = chunk.logprobs
    assert (entry.token_id, entry.logprob) == (5, -0.5)
    assert [(other.token_id, other.logprob) for other in entry.top] == [(6, -0.25)]


def test_the_prompts_logprobs_come_with_the_first_chunk(vocabulary: Vocabulary) -> None:
    made = Made(vocabulary, asking(prompt_logprobs=0), PromptEcho("p", (1, 202)))
    assert made.making.scores_prompt
    chunk = made.feed(5, input_token_logprobs=[(None, 1, None), (float("-inf"), 202, None)])
    assert chunk.prompt is not None
    assert chunk.prompt.logprobs is not None
    assert [entry.logprob for entry in chunk.prompt.logprobs] == [None, -9999.0]
    assert made.feed(5, input_token_logprobs=[]).prompt is None


@pytest.mark.parametrize("resumed", [(5, 6, 7), (5, END)])
def test_an_answer_resumed_at_its_end_needs_no_engine(vocabulary: Vocabulary, resumed: tuple[int, ...]) -> None:
    made = Made(vocabulary, asking(max_tokens=3, resume_token_ids=resumed))
    assert made.making.drawn
    chunk = made.making.finish()
    assert chunk.finish_reason == ("stop" if resumed[-1] == END else "length")
    assert chunk.usage == Usage(2, len(resumed))
