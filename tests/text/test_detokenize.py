from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from fastchat_serve.text import Detokenizer, TokenBytes

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXT = "hello world, naïve café 😀 日本語 \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN} \ufeff e\u0301 the end"
KINDS = ["byte_level", "byte_fallback", "word_piece"]


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def streamed(tokenizer: Any, token_ids: Sequence[int], *, prompt_ids: Sequence[int] = (), skip: bool = True) -> str:
    detokenizer = Detokenizer(tokenizer, prompt_ids=prompt_ids, skip_special_tokens=skip)
    return "".join([detokenizer.feed(token_id) for token_id in token_ids]) + detokenizer.flush()


@pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
def test_streamed_text_is_the_decoded_text(tokenizer: Any) -> None:
    token_ids = tokenizer.encode(TEXT).ids

    assert streamed(tokenizer, token_ids) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
def test_text_after_a_prompt_is_what_it_adds_to_the_prompt_wherever_the_prompt_ends(tokenizer: Any) -> None:
    token_ids = tokenizer.encode(TEXT).ids
    whole, table = tokenizer.decode(token_ids, skip_special_tokens=False), TokenBytes(tokenizer)

    for cut in range(len(token_ids) + 1):
        prompt = b"".join([table[token_id] for token_id in token_ids[:cut]]).decode(errors="ignore").removeprefix(" ")
        assert prompt + streamed(tokenizer, token_ids[cut:], prompt_ids=token_ids[:cut], skip=False) == whole


def test_a_prompt_of_special_tokens_only_leaves_the_first_space_out(byte_fallback: Any) -> None:
    end, hello = byte_fallback.token_to_id("</s>"), byte_fallback.encode("the").ids

    assert streamed(byte_fallback, hello, prompt_ids=[end] * 20) == "the"
    assert streamed(byte_fallback, hello, prompt_ids=[*hello, *[end] * 20]) == " the"


def test_an_incomplete_character_is_held_back_until_it_is_complete(byte_level: Any) -> None:
    spelling = {byte: token_id for token_id, byte in bytes_by_id(byte_level).items() if len(byte) == 1}
    first, *middle, last = (spelling[bytes([byte])] for byte in "😀".encode())
    detokenizer = Detokenizer(byte_level)

    assert [detokenizer.feed(token_id) for token_id in (first, *middle)] == [""] * 3
    assert detokenizer.feed(last) == "😀"


def test_special_tokens_inside_a_character_do_not_break_it(byte_level: Any) -> None:
    spelling = {byte: token_id for token_id, byte in bytes_by_id(byte_level).items() if len(byte) == 1}
    first, *rest = (spelling[bytes([byte])] for byte in "😀".encode())

    assert streamed(byte_level, [first, *[byte_level.token_to_id("<|end|>")] * 40, *rest]) == "😀"


def test_an_answer_that_ends_within_a_character_shows_that(byte_level: Any) -> None:
    detokenizer = Detokenizer(byte_level)

    assert detokenizer.feed(byte_level.token_to_id("ð")) == ""
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""


def bytes_by_id(tokenizer: Any) -> dict[int, bytes]:
    table = TokenBytes(tokenizer)
    return {token_id: table[token_id] for token_id in range(tokenizer.get_vocab_size())}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
def test_any_tokens_at_all_give_the_decoded_text(tokenizer: Any, seed: int) -> None:
    """Random tokens: bytes in any order, special tokens, and ids that are no token."""
    rng = random.Random(seed)
    for _ in range(150):
        pool = [rng.randrange(tokenizer.get_vocab_size() + 3) for _ in range(rng.choice([1, 2, 5, 50]))]
        token_ids = rng.choices(pool, k=rng.choice([1, 5, 40, 100]))
        skip = rng.random() < 0.5
        decoded = tokenizer.decode(token_ids, skip_special_tokens=skip)
        if REPLACEMENT not in decoded or "ByteFallback" not in repr(tokenizer.decoder):
            assert streamed(tokenizer, token_ids, skip=skip) == decoded


def test_bytes_that_spoil_a_run_leave_the_characters_before_them_right(byte_fallback: Any) -> None:
    """The decoder shows all four bytes as U+FFFD, but two of them went out as a character before."""
    run = [byte_fallback.token_to_id(f"<0x{byte:02X}>") for byte in (*"é".encode(), 0xFF)]
    token_ids = [*run, *byte_fallback.encode("the").ids]

    assert byte_fallback.decode(token_ids) == REPLACEMENT * 3 + " the"
    assert streamed(byte_fallback, token_ids) == "é" + REPLACEMENT + " the"


@pytest.mark.parametrize("tokenizer", ["byte_level", "byte_fallback"], indirect=True)
def test_bytes_that_never_become_a_character_are_not_held_back_for_ever(tokenizer: Any) -> None:
    lead = next(token_id for token_id, data in bytes_by_id(tokenizer).items() if data == b"\xe2")
    detokenizer = Detokenizer(tokenizer)

    out = "".join(detokenizer.feed(lead) for _ in range(1000))

    assert set(out) == {REPLACEMENT}
    assert len(out) > 950
    assert len(out + detokenizer.flush()) == 1000


@pytest.mark.parametrize("kind", ["special", "unknown", "invalid", "text"])
def test_cost_grows_with_the_new_tokens_alone(byte_level: Any, kind: str) -> None:
    token_id = {
        "special": byte_level.token_to_id("<|end|>"),
        "unknown": byte_level.get_vocab_size() + 10,
        "invalid": byte_level.token_to_id("ð"),
        "text": byte_level.encode("e").ids[0],
    }[kind]
    detokenizer = Detokenizer(byte_level)

    started = time.process_time()
    for _ in range(50_000):
        detokenizer.feed(token_id)

    assert time.process_time() - started < 5  # decoding all of it each time takes a quarter of an hour


def test_special_tokens_are_text_if_asked_for(byte_level: Any) -> None:
    end = byte_level.token_to_id("<|end|>")

    assert streamed(byte_level, [end], skip=True) == ""
    assert streamed(byte_level, [end], skip=False) == "<|end|>"


# -------------------------------------------------------------------------------------- token bytes


@pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
def test_the_bytes_of_tokens_joined_are_the_bytes_of_the_text(tokenizer: Any) -> None:
    token_ids = tokenizer.encode(TEXT).ids
    table = TokenBytes(tokenizer)

    joined = b"".join([table[token_id] for token_id in token_ids]).decode()

    assert joined.removeprefix(" ") == tokenizer.decode(token_ids, skip_special_tokens=False)


def test_a_token_that_is_part_of_a_character_has_just_its_bytes(byte_level: Any, byte_fallback: Any) -> None:
    assert TokenBytes(byte_level)[byte_level.token_to_id("ð")] == b"\xf0"
    assert TokenBytes(byte_fallback)[byte_fallback.token_to_id("<0xF0>")] == b"\xf0"


def test_added_tokens_are_spelt_as_they_are(byte_level: Any) -> None:
    table = TokenBytes(byte_level)

    assert table[byte_level.token_to_id("<|end|>")] == b"<|end|>"
    assert table[byte_level.token_to_id("<tool_call>")] == b"<tool_call>"


def test_a_token_keeps_the_space_it_begins_with(byte_fallback: Any) -> None:
    assert TokenBytes(byte_fallback)[byte_fallback.token_to_id("▁the")] == b" the"


def test_an_id_that_is_no_token_has_no_bytes(byte_level: Any) -> None:
    assert TokenBytes(byte_level)[byte_level.get_vocab_size() + 1] == b""
