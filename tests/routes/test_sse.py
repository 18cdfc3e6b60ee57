"""Streams: the same text as plain replies, byte for byte, and exactly one end."""

from __future__ import annotations

import json

import pytest

from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.local import ABORT_GRACE_S
from tests.end_to_end.raw import connected, events, expect_error, post
from tests.end_to_end.waiting import queue_lengths, until

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

TEXTS = {
    "plain": "to be or not to be",
    "quotes and controls": 'a "b" \\ / \b\f\n\r\t\x00\x1f\x7f </script> \u2028\u2029',
    "looks like events": "data: [DONE]\n\ndata: {}\n\n: x\r\nevent: y",
    "family": "a👨‍👩‍👧‍👦b🏳️‍🌈c",
    "cjk": "日本語と中文、한국어。",
    "combining": "e\u0301a\u0308\u0323 Z\u0351\u036b\u0343",
    "marks": "\ufeffbom\ufeff \u200bzero\u200d \u202eright\u202c",
    "rtl": "שלום עולם مرحبا",
    "replacement": "really \ufffd here",
    "astral": "𝄞𐍈\U0010ffff",
}


def worker(name: str, **options: object) -> str:
    """One echo worker as TOML; JSON's numbers, strings and lists are TOML's too."""
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return f'[[worker]]\nbackend = "echo"\nnames = ["{name}"]\nconcurrency = 64\n[worker.options]\n{lines}\n'


ROLES = "[controller]\n[api]\n[limits]\nmax_n = 8\n"


@pytest.fixture(scope="module")
def config() -> str:
    every_cut = list(range(1, 200))
    return ROLES + "".join(
        [
            worker("word"),
            worker("character", split="character"),
            worker("byte", split="byte"),
            worker("cuts", cuts=every_cut[::3]),
            worker("odd-cuts", cuts=[1, 2, 3, 5, 8, 13, 21, 34, 55]),
        ]
    )


def chat(model: str, text: str, **more: object) -> bytes:
    return post(CHAT, {"model": model, "messages": [{"role": "user", "content": text}]} | more)


def check_stream(body: bytes, choices: int = 1) -> list[str]:
    """The texts of a stream that ended well; asserts G2 for every choice."""
    *chunks, done = events(body)
    assert done == "[DONE]"
    texts, finished = [""] * choices, [0] * choices
    for chunk in chunks:
        for choice in chunk["choices"]:
            index = choice["index"]
            assert not finished[index], "nothing comes after a choice's end"
            texts[index] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            finished[index] += choice["finish_reason"] is not None
    assert finished == [1] * choices
    return texts


@pytest.mark.parametrize("model", ["word", "character", "byte", "cuts", "odd-cuts"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_streamed_text_is_the_plain_text_however_it_is_cut(server, model, text):
    """G3, F34: no character is split, doubled or lost, and none is U+FFFD that was not sent."""
    async with connected(server) as connection:
        for path, asked in ((CHAT, {"messages": [{"role": "user", "content": text}]}), (TEXT, {"prompt": text})):
            asked |= {"model": model, "max_tokens": 1000}
            plain = await connection.request(post(path, asked))
            stream = await connection.request(post(path, asked | {"stream": True, "n": 2}))

            choice = plain.json()["choices"][0]
            assert (choice["message"]["content"] if path == CHAT else choice["text"]) == text
            assert check_stream(stream.body, 2) == [text, text]
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_every_single_cut_gives_the_same_text(serving):
    """G3, F34: a text of all kinds of characters, cut in two at each of its bytes."""
    text = "a👩‍🚀é日\ufeffö𝄞"
    size = len(text.encode())
    async with (
        serving(ROLES + "".join(worker(f"cut-{at}", cuts=[at]) for at in range(1, size))) as server,
        connected(server) as connection,
    ):
        for at in range(1, size):
            stream = await connection.request(chat(f"cut-{at}", text, stream=True))
            assert check_stream(stream.body) == [text], at


async def test_whatever_a_model_is_called_its_answers_are_streamed(serving):
    names = ["a\0b", "\0", "data: x\n\n", '"}', "日本"]
    toml = ROLES + '[[worker]]\nbackend = "echo"\nnames = ' + json.dumps(names)
    async with serving(toml) as server, connected(server) as connection:
        for name in names:
            assert check_stream((await connection.request(chat(name, "to be", stream=True))).body) == ["to be"]
            text = post(TEXT, {"model": name, "prompt": "to be", "stream": True})
            assert check_stream((await connection.request(text)).body) == ["to be"]


@pytest.mark.parametrize("split", ["byte", "word"])
async def test_what_is_not_utf8_is_replaced_the_same_way_streamed_and_plain(serving, split):
    """F34: U+FFFD only where the engine's bytes were no character."""
    raw = {
        "lone byte": b"a\xffb",
        "cut off": "日".encode()[:2],
        "cut off within": b"a\xe6\x97b",
        "surrogate": b"\xed\xa0\x80",
        "overlong": b"\xc0\xaf",
        "two": "é".encode() + b"\xf0\x9f\x91" + "é".encode(),
    }
    toml = ROLES + "".join(worker(f"raw-{i}", raw=data.hex(), split=split) for i, data in enumerate(raw.values()))
    async with serving(toml) as server, connected(server) as connection:
        for index, data in enumerate(raw.values()):
            plain = await connection.request(chat(f"raw-{index}", "x"))
            stream = await connection.request(chat(f"raw-{index}", "x", stream=True))
            text = plain.json()["choices"][0]["message"]["content"]
            assert check_stream(stream.body) == [text]
            assert text == data.decode(errors="replace")


@pytest.mark.parametrize("stop", ["👩", "\u200d", "日本", "語と", "aa", "\n"])
async def test_stop_strings_cut_streams_and_plain_replies_alike(server, stop):
    """G3: the stop string may begin in one token and end in another."""
    text = "x👩‍🚀 日本語と aab\nz"
    async with connected(server) as connection:
        for model in ("word", "character", "byte", "cuts"):
            plain = await connection.request(chat(model, text, stop=stop))
            stream = await connection.request(chat(model, text, stop=stop, stream=True))
            assert plain.json()["choices"][0]["message"]["content"] == text.partition(stop)[0]
            assert check_stream(stream.body) == [text.partition(stop)[0]]


async def test_an_empty_answer_is_still_a_whole_stream(server):
    async with connected(server) as connection:
        stream = await connection.request(chat("word", "", stream=True))
        first = events(stream.body)[0]
        assert check_stream(stream.body) == [""]
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}


# ------------------------------------------------------------------------------------------- faults

FIVE = "one two three four five"


def check_error_stream(body: bytes, code: str) -> str:
    """The text of a stream that failed: one error event, last, and no end mark (G2)."""
    *chunks, error = events(body)
    assert set(error) == {"error"}
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert error["error"]["code"] == code
    assert all("error" not in chunk and chunk != "[DONE]" for chunk in chunks)
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize(
    ("fault", "code"), [("fail_at", "engine_failed"), ("end_without_finish_at", "engine_protocol_error")]
)
async def test_an_engine_that_fails_ends_the_stream_with_one_error(serving, fault, code):
    """F14, F18: before the first token it is a status, after it the last event."""
    words = [f"w{number}" for number in range(10)]
    toml = ROLES + "".join(worker(f"at-{k}", **{fault: k}) for k in (0, 1, 7, 9)) + worker("good")
    async with serving(toml) as server, connected(server) as connection:
        for k in (0, 1, 7, 9):
            stream = await connection.request(chat(f"at-{k}", " ".join(words), stream=True))
            if k == 0:
                expect_error(stream, 500, code)
            else:
                assert stream.status == 200
                assert check_error_stream(stream.body, code) == " ".join(words[:k])
            expect_error(await connection.request(chat(f"at-{k}", " ".join(words))), 500, code)
        assert (await connection.request(chat("good", "x"))).status == 200, "others go on"


async def test_one_choice_that_fails_ends_all(serving):
    """G2: one error for the reply, not one for each choice."""
    async with serving(ROLES + worker("echo", fail_at=2)) as server, connected(server) as connection:
        body = (await connection.request(chat("echo", FIVE, stream=True, n=4))).body
        check_error_stream(body, "engine_failed")


async def test_an_engine_that_stalls_is_given_up_on(serving):
    """F15: the limits of the worker hold, each with its own code, and the slot comes back."""
    limits = "[worker.timeouts]\nfirst_token_s = 0.2\nbetween_tokens_s = 0.2\n"
    toml = ROLES + worker("at-0", stall_at=0) + limits + worker("at-2", stall_at=2) + limits
    async with serving(toml) as server, connected(server) as connection:
        expect_error(await connection.request(chat("at-0", FIVE, stream=True)), 504, "first_token_timeout")
        expect_error(await connection.request(chat("at-2", FIVE)), 504, "between_tokens_timeout")
        stream = await connection.request(chat("at-2", FIVE, stream=True))
        assert check_error_stream(stream.body, "between_tokens_timeout") == "one two"
        workers = (await connection.request(b"GET /cluster/workers HTTP/1.1\r\nhost: localhost\r\n\r\n")).json()
        assert [worker["running"] for worker in workers["workers"]] == [0, 0]


async def test_an_answer_that_takes_too_long_in_all_is_ended(serving):
    """G12."""
    toml = ROLES + worker("echo", loop=True, delay_ms=5) + "[worker.timeouts]\ntotal_s = 0.3\n"
    async with serving(toml) as server, connected(server) as connection:
        stream = await connection.request(chat("echo", FIVE, stream=True))
        assert check_error_stream(stream.body, "total_timeout").startswith("one two")


@pytest.mark.usefixtures("no_restarts")
async def test_an_engine_that_ignores_an_abort_is_taken_out_and_its_slot_is_freed(serving):
    """F15, with an abort that hangs too: the worker is failed, said so, and the others serve."""
    limits = "[worker.timeouts]\nfirst_token_s = 0.2\n"
    toml = ROLES + worker("deaf", stall_at=0, deaf=True) + limits + worker("good")
    async with serving(toml) as server, connected(server) as connection:
        expect_error(await connection.request(chat("deaf", FIVE)), 504, "first_token_timeout")
        await until(lambda: server.application.workers[0].state is WorkerState.FAILED, within_s=2 * ABORT_GRACE_S)
        assert queue_lengths(server) == (0, 0)
        expect_error(await connection.request(chat("deaf", FIVE)), 503)
        assert (await connection.request(chat("good", "x"))).status == 200
