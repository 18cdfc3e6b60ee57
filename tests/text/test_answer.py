from __future__ import annotations

from typing import Any

import pytest

from fastchat_serve.text import AnswerText, Detokenizer

TEXT = "hello world, the quick 😀 fox jumps 日本語 over"


def whole_text(answer: AnswerText, token_ids: list[int]) -> str:
    return "".join([answer.feed(token_id) for token_id in token_ids]) + answer.finish()


def test_the_answer_ends_before_a_stop_string_that_spans_tokens(byte_level: Any) -> None:
    answer = AnswerText(Detokenizer(byte_level), stops=["quick 😀 fo"])

    assert whole_text(answer, byte_level.encode(TEXT).ids) == "hello world, the "
    assert answer.matched == "quick 😀 fo"


def test_what_only_began_like_a_stop_string_comes_at_the_end(byte_level: Any) -> None:
    answer = AnswerText(Detokenizer(byte_level), stops=["over and out"])

    assert whole_text(answer, byte_level.encode(TEXT).ids) == TEXT
    assert answer.matched is None


def test_text_that_the_end_completes_can_still_match(byte_level: Any) -> None:
    """U+FFFD for the incomplete character comes only at the end."""
    answer = AnswerText(Detokenizer(byte_level), stops=["\N{REPLACEMENT CHARACTER}"])

    assert whole_text(answer, [*byte_level.encode("hello").ids, byte_level.token_to_id("ð")]) == "hello"
    assert answer.matched == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stops", [[], ["quick 😀 fo"], ["jumps up"]])
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(
    kind: str, stops: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    prompt_ids, token_ids = tokenizer.encode("how are").ids, tokenizer.encode(TEXT).ids
    unbroken = AnswerText(Detokenizer(tokenizer, prompt_ids=prompt_ids), stops=stops)
    deltas = [unbroken.feed(token_id) for token_id in token_ids]
    rest = unbroken.finish()

    for cut in range(len(token_ids)):
        resumed = AnswerText(Detokenizer(tokenizer, prompt_ids=prompt_ids), stops=stops)
        resumed.resume(token_ids[:cut])
        assert [resumed.feed(token_id) for token_id in token_ids[cut:]] == deltas[cut:]
        assert resumed.finish() == rest
        assert resumed.matched == unbroken.matched
