"""The pool by itself, with connections that a test makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from raw_upstream import PATIENCE_S, RawUpstream, head
from test_faults import sends

from fastchat_backend_openai.address import Address
from fastchat_backend_openai.connect import Connector
from fastchat_backend_openai.connection import Connection
from fastchat_backend_openai.http import Fetch
from fastchat_backend_openai.pool import Pool
from fastchat_serve import Unavailable

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\n\r\n"


class EndsAtOnce(Connector):
    """Its first connection has ended when it is handed over, as one may that an upstream accepts and drops."""

    ended = False

    async def __call__(self, make: Callable[[], Connection]) -> Connection:
        connection = await super().__call__(make)
        if not self.ended:
            self.ended = True
            connection.abort()
            await asyncio.sleep(0.05)  # for the transport to tell
        return connection


async def test_a_connection_that_has_ended_already_takes_no_place() -> None:
    async with RawUpstream(sends(head(content_length="0"), close=False)) as upstream, asyncio.timeout(PATIENCE_S):
        connect = EndsAtOnce(Address.of(upstream.url), tls=None, proxy=None, timeout_s=PATIENCE_S)
        pool = Pool(connect, max_connections=1, read_timeout_s=PATIENCE_S)
        first, second = Fetch(1), Fetch(1)
        pool.submit(GET, first)
        pool.submit(GET, second)

        with pytest.raises(Unavailable):
            await first.reply
        assert (await second.reply).head.status == 200
        await pool.close()
