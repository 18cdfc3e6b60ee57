"""Clients that ask all the time while something breaks, and their ledger: what each was given, and when.

The text of every answer is known beforehand, and nothing of the server: a request has to end with its whole text, or
with one error in place of the rest (G1 to G3).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import anyio
from msgspec import Struct

from tests.end_to_end.raw import Connection, Reply, post
from tests.faults.ledger import ending

__all__ = ["BROKEN", "WRONG", "Load", "Outcome"]

BROKEN = "connection broken"
"""The code of a request whose connection broke: right only if the process that held it was killed."""


WRONG = "wrong text"


class Outcome(Struct, eq=False):
    """What became of one request.

    Attributes:
        code: Of its error; empty if it ended well.
        longest_wait_s: For the first of it, or the next.
        begun: An answer was promised.
        refused: How often it was turned away before.
    """

    is_stream: bool
    code: str = ""
    longest_wait_s: float = 0.0
    begun: bool = False
    refused: int = 0


class Load:
    """``async with load.running():``, and the requests that have ended are in `outcomes`.

    Args:
        connected: Connects to an API.
        key: Of that API.
        streams: How many are under way at any time.
        plain_per_s: Short requests, each over a connection of its own.
        words: Of a stream's text, each a token.
        is_patient: Who is turned away, with 503 or without a word, asks again.
    """

    def __init__(
        self,
        connected: Callable[[], AbstractAsyncContextManager[Connection]],
        *,
        key: str = "",
        streams: int = 20,
        plain_per_s: float = 20.0,
        words: int = 60,
        is_patient: bool = False,
    ) -> None:
        self._connected, self._key = connected, key
        self._streams, self._plain_per_s, self._words = streams, plain_per_s, words
        self._is_patient = is_patient
        self.outcomes: list[Outcome] = []
        self._under_way: set[Outcome] = set()
        self._numbers = itertools.count()
        self._over = False

    @property
    def errors(self) -> Counter[str]:
        """By code: how many ended with it."""
        return Counter(outcome.code for outcome in self.outcomes if outcome.code)

    @property
    def longest_wait_s(self) -> float:
        return max(outcome.longest_wait_s for outcome in self.outcomes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask meanwhile; at the end what is under way is waited for, and nothing new is asked."""
        async with anyio.create_task_group() as tasks:
            for _ in range(self._streams):
                tasks.start_soon(self._stream_after_stream)
            tasks.start_soon(self._plain, tasks)
            try:
                yield
            finally:
                self.stop()

    def stop(self) -> None:
        """Ask nothing new."""
        self._over = True

    async def is_at_work(self, seconds: float = 0.5) -> None:
        """Return after a while in which requests were answered."""
        before = len(self.outcomes)
        with anyio.fail_after(seconds + 20):
            await anyio.sleep(seconds)
            while len(self.outcomes) == before:  # noqa: ASYNC110 - an outcome sets no event
                await anyio.sleep(0.01)

    async def what_is_under_way_has_ended(self) -> None:
        """Return when what is under way now has ended: the next fault is the first one that newer requests meet."""
        earlier = frozenset(self._under_way)
        with anyio.fail_after(20):
            while earlier & self._under_way:  # noqa: ASYNC110 - an outcome sets no event
                await anyio.sleep(0.01)

    async def _stream_after_stream(self) -> None:
        while not self._over:
            await self._ask(is_stream=True)

    async def _plain(self, tasks: anyio.abc.TaskGroup) -> None:
        while not self._over:
            tasks.start_soon(self._ask_plainly)
            await anyio.sleep(1 / self._plain_per_s)

    async def _ask_plainly(self) -> None:
        await self._ask(is_stream=False)

    async def _ask(self, *, is_stream: bool) -> None:
        text = self._text(self._words if is_stream else 3)
        asked = {"model": "echo", "prompt": text, "max_tokens": 100_000, "stream": is_stream}
        outcome = Outcome(is_stream)
        self._under_way.add(outcome)
        request = post("/v1/completions", asked, authorization=f"Bearer {self._key}")
        reply = await self._reply(request, outcome)
        while self._is_patient and (reply is None or reply.status == 503) and not outcome.begun:
            outcome.refused += 1
            await anyio.sleep(0.1)
            reply = await self._reply(request, outcome)
        if reply is None:
            outcome.code = BROKEN
            await anyio.sleep(0.1)  # whoever dialled in vain does not dial again at once
        else:
            end = ending(reply)
            is_right = text.startswith(end.text) if end.code else end.text == text
            outcome.code = end.code if is_right else f"{WRONG}: {end.text!r} instead of {text!r}"
        self._under_way.remove(outcome)
        self.outcomes.append(outcome)

    async def _reply(self, request: bytes, outcome: Outcome) -> Reply | None:
        """None if the connection broke before it was whole."""
        with suppress(OSError, asyncio.IncompleteReadError):
            return await self._whole_reply(request, outcome)
        return None

    async def _whole_reply(self, request: bytes, outcome: Outcome) -> Reply:
        clock = asyncio.get_running_loop().time
        async with self._connected() as connection:
            last = clock()

            def something_came() -> None:
                nonlocal last
                outcome.longest_wait_s = max(outcome.longest_wait_s, clock() - last)
                last = clock()

            connection.send(request)
            status, headers = await connection.head()
            outcome.begun = status == 200
            something_came()
            body = b""
            if headers.get("transfer-encoding") == "chunked":
                while piece := await connection.piece():
                    something_came()
                    body += piece
            else:
                body = await connection.reader.readexactly(int(headers["content-length"]))
            return Reply(status, headers, body)

    def _text(self, words: int) -> str:
        """Another one every time, so that nobody can be given what was meant for somebody else."""
        number = next(self._numbers)
        return " ".join(f"{number}.{word}" for word in range(words))
