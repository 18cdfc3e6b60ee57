"""Embeddings: unit vectors, one per input, in order."""

from __future__ import annotations

import math
import struct

import anyio
import pytest

from fastchat_serve.engine import Capability, Embeddings, EmbedRequest, TextPrompt, TokenPrompt
from fastchat_serve.errors import ContextOverflow, InvalidRequest
from fastchat_serve.testing.marks import needs
from fastchat_serve.testing.subject import PROMPTS, Subject
from fastchat_serve.testing.test_context import too_long

pytestmark = needs(Capability.EMBED)

UNIT = 1e-3
"""How far from 1 a length may be: rounding in half precision."""
SAME = 2e-3
"""And how far apart two vectors of the same text, in any component, in other company."""

TEXTS = (*PROMPTS, "x", "a somewhat longer text about rivers " * 8)


async def embed(subject: Subject, *texts: str, truncate: bool = False) -> Embeddings:
    with anyio.fail_after(subject.settings.wait_s):
        return await subject.embedder.embed(
            EmbedRequest(id="conformance", inputs=tuple(map(TextPrompt, texts)), truncate=truncate)
        )


def rows(embeddings: Embeddings) -> list[tuple[float, ...]]:
    """The vectors, read as the contract says they are written."""
    step = 4 * embeddings.dimensions
    starts = range(0, len(embeddings.data), step)
    return [struct.unpack(f"<{embeddings.dimensions}f", embeddings.data[i : i + step]) for i in starts]


def distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


async def test_are_float32(subject: Subject) -> None:
    """`data` has four bytes, a little-endian float32, for every dimension of every input."""
    found = await embed(subject, *TEXTS)
    assert type(found.data) is bytes
    assert found.dimensions > 0
    assert len(found.data) == len(TEXTS) * found.dimensions * 4
    assert all(math.isfinite(value) for row in rows(found) for value in row)
    subject.note(f"{found.dimensions} dimensions")


async def test_have_length_one(subject: Subject) -> None:
    """Every row has the Euclidean length 1."""
    for row in rows(await embed(subject, *TEXTS)):
        assert math.hypot(*row) == pytest.approx(1.0, abs=UNIT)


async def test_are_in_order(subject: Subject) -> None:
    """Each input has the vector it has by itself, whatever its company, in the order of the inputs."""
    together = rows(await embed(subject, *TEXTS))
    for text, row in zip(TEXTS, together, strict=True):
        (alone,) = rows(await embed(subject, text))
        assert distance(row, alone) < SAME, f"{text[:20]!r}"


async def test_tell_texts_apart(subject: Subject) -> None:
    """Equal texts have equal vectors, other texts have others."""
    one, same, other = rows(await embed(subject, TEXTS[0], TEXTS[0], TEXTS[2]))
    assert distance(one, same) < SAME
    assert distance(one, other) > SAME


async def test_count_their_tokens(subject: Subject) -> None:
    """`prompt_tokens` is the sum over all inputs."""
    counts = [(await embed(subject, text)).prompt_tokens for text in TEXTS]
    assert (await embed(subject, *TEXTS)).prompt_tokens == sum(counts)
    if subject.can(Capability.TOKENIZE):
        ids = [await subject.tokenizer.tokenize(TextPrompt(text)) for text in TEXTS]
        assert counts == [len(each) for each in ids]


@needs(Capability.TOKENIZE, Capability.TOKEN_PROMPT)
async def test_take_ids(subject: Subject) -> None:
    """The ids of a text have the vector of the text."""
    ids = await subject.tokenizer.tokenize(TextPrompt(TEXTS[0]))
    request = EmbedRequest(id="conformance", inputs=(TokenPrompt(ids), TextPrompt(TEXTS[0])))
    by_ids, by_text = rows(await subject.embedder.embed(request))
    assert distance(by_ids, by_text) < SAME


async def test_too_long_is_refused(subject: Subject) -> None:
    """An input over the context is a `ContextOverflow`, and none of the inputs is embedded."""
    with pytest.raises(ContextOverflow):
        await embed(subject, TEXTS[0], too_long(subject))


async def test_too_long_is_truncated_if_asked(subject: Subject) -> None:
    """With `truncate` its tail is dropped instead."""
    found = await embed(subject, too_long(subject), truncate=True)
    assert len(rows(found)) == 1
    assert found.prompt_tokens <= subject.info.context_length


async def test_bad_text_is_refused(subject: Subject) -> None:
    """Half a surrogate pair is an `InvalidRequest`, and the next request is served."""
    with pytest.raises(InvalidRequest):
        await embed(subject, "half \ud83d of a pair")
    await embed(subject, TEXTS[0])


async def test_can_be_given_up(subject: Subject) -> None:
    """A cancelled call returns at once, lets go, and the next is served."""
    before = rows(await embed(subject, TEXTS[0]))
    for delay_s in (0.0, 0.001, 0.01):
        with anyio.move_on_after(delay_s):
            await embed(subject, *TEXTS)
    await subject.idle()
    after = rows(await embed(subject, TEXTS[0]))
    assert distance(before[0], after[0]) < SAME
