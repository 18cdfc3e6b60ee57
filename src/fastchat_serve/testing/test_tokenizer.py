"""The tokenizer: there and back."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability, TextPrompt
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.subject import PROMPTS, Subject

pytestmark = needs(Capability.TOKENIZE)


async def test_there_and_back(subject: Subject) -> None:
    """`detokenize` gives the text back that `tokenize` was given, special tokens and outer white space apart."""
    for text in (*PROMPTS, "x", "  two  spaces\n\tand a tab", "a\u0301 is not \u00e1"):
        ids = await subject.tokenizer.tokenize(TextPrompt(text))
        assert ids
        assert all(type(token_id) is int and token_id >= 0 for token_id in ids)
        assert (await subject.tokenizer.detokenize(ids)).strip().endswith(text.strip())


async def test_equal_texts_have_equal_ids(subject: Subject) -> None:
    """The same text has the same ids every time, and other texts have others."""
    first, second = [await subject.tokenizer.tokenize(TextPrompt(PROMPTS[0])) for _ in range(2)]
    assert first == second
    assert first != await subject.tokenizer.tokenize(TextPrompt(PROMPTS[2]))


@needs(Capability.CHAT)
async def test_conversations_have_ids(subject: Subject) -> None:
    """`tokenize` takes conversations as well, and their ids hold what was said."""
    ids = await subject.tokenizer.tokenize(subject.prompt(PROMPTS[0]))  # type: ignore[arg-type]
    assert PROMPTS[0] in await subject.tokenizer.detokenize(ids)


@pytest.mark.parametrize("token_id", [-1, 2**31 - 1, 2**63])
async def test_ids_that_are_none_are_refused(subject: Subject, token_id: int) -> None:
    """`detokenize` of an id that the vocabulary has not is an `InvalidRequest`."""
    with pytest.raises(InvalidRequest):
        await subject.tokenizer.detokenize((token_id,))


async def test_text_that_is_none_is_refused(subject: Subject) -> None:
    """`tokenize` of half a surrogate pair is an `InvalidRequest`."""
    with pytest.raises(InvalidRequest):
        await subject.tokenizer.tokenize(TextPrompt("half \ud83d of a pair"))
