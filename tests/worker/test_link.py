"""A link whose end fails is given up, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

import anyio
import msgspec
import pytest

from fastchat_serve.protocol.frames import frame
from fastchat_serve.protocol.link import Abort, FromCaller, FromHost, Gone, Pace, Ping, Text
from fastchat_serve.worker import link
from fastchat_serve.worker.link import PING_S, Link
from tests.worker.every_worker import until

pytestmark = pytest.mark.anyio


class End:
    """Remembers what it is told; raises when it hears of `fatal`."""

    def __init__(self, fatal: type[object] | None = None) -> None:
        self._fatal = fatal
        self.received: list[object] = []
        self.told: list[str] = []
        self.gone = anyio.Event()

    def opened(self) -> None:
        self.told.append("opened")

    def receive(self, messages: Sequence[object]) -> None:
        self.received += messages
        if self._fatal is not None and isinstance(messages[0], self._fatal):
            raise RuntimeError("a fault of ours")

    def silent(self) -> None:
        self.told.append("silent")

    def heard(self) -> None:
        self.told.append("heard")

    def closed(self, reason: str) -> None:
        self.told.append("closed")
        self.gone.set()


async def linked(caller: End, host: End) -> tuple[Link[FromCaller, FromHost], Link[FromHost, FromCaller]]:
    loop, sockets = asyncio.get_running_loop(), socket.socketpair()
    for each in sockets:
        each.setblocking(False)
    _, calling = await loop.create_unix_connection(lambda: Link(list[FromHost], caller), sock=sockets[0])
    _, hosting = await loop.create_unix_connection(lambda: Link(list[FromCaller], host), sock=sockets[1])
    return calling, hosting


async def test_an_end_that_raises_loses_its_link_and_both_ends_hear_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caller, host = End(), End(fatal=Abort)
    calling, hosting = await linked(caller, host)

    calling.send(Abort(1))
    with anyio.fail_after(10):
        await caller.gone.wait()
        await host.gone.wait()

    assert not calling.open
    assert not hosting.open
    assert "a fault of ours" in caplog.text
    calling.send(Abort(2))  # to nobody, and nothing breaks
    hosting.send(Gone("w"))


async def test_what_is_sent_before_a_link_is_closed_arrives(caplog: pytest.LogCaptureFixture) -> None:
    caller, host = End(), End()
    calling, hosting = await linked(caller, host)

    hosting.send(Gone("w"))
    hosting.close("it is over")
    with anyio.fail_after(10):
        await calling.wait_closed()
        await hosting.wait_closed()

    assert caller.received == [Gone("w")]
    assert host.told == caller.told == ["opened", "closed"]
    assert hosting.reason == "it is over"


async def test_last_words_are_spoken_after_all_else_of_a_turn_and_leave_with_it() -> None:
    caller, host = End(), End()
    calling, hosting = await linked(caller, host)

    hosting.send(Gone("first"))
    hosting.before_leaving(lambda: hosting.send(Gone("last")))
    hosting.send(Gone("second"))
    hosting.close("it is over")  # now
    with anyio.fail_after(10):
        await calling.wait_closed()
        await hosting.wait_closed()

    assert caller.received == [Gone("first"), Gone("second"), Gone("last")]


@pytest.mark.parametrize("closing", [False, True])
async def test_last_words_that_fail_end_the_link(caplog: pytest.LogCaptureFixture, closing: bool) -> None:
    caller, host = End(), End()
    calling, hosting = await linked(caller, host)

    hosting.send(Gone("w"))
    hosting.before_leaving(lambda: {}["nothing"])
    if closing:
        hosting.close("it is over")
    with anyio.fail_after(10):
        await calling.wait_closed()
        await hosting.wait_closed()

    assert hosting.reason == "a message could not be made"
    assert "a fault of ours" in caplog.text


@pytest.mark.parametrize("ending", [Link.close, Link.abort])
async def test_last_words_may_end_the_link(caplog: pytest.LogCaptureFixture, ending: Callable[..., None]) -> None:
    caller, host = End(), End()
    calling, hosting = await linked(caller, host)

    hosting.send(Gone("w"))
    hosting.before_leaving(lambda: ending(hosting, "they end it"))
    with anyio.fail_after(10):
        await calling.wait_closed()
        await hosting.wait_closed()

    assert hosting.reason == "they end it"
    assert caller.received == ([Gone("w")] if ending is Link.close else [])
    assert not caplog.records


async def test_the_caller_sets_the_pace_of_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    caller, host = End(), End()
    calling, hosting = await linked(caller, host)
    assert calling.ping_s == hosting.ping_s == PING_S

    calling.pace(7.0)
    calling.send(Abort(1))
    await until(lambda: bool(host.received))

    assert calling.ping_s == hosting.ping_s == 7.0
    assert host.received == [Abort(1)], "pace is the link's own business"
    calling.close("the test is over")
    with anyio.fail_after(10):
        await hosting.wait_closed()


async def test_who_is_silent_for_several_pings_is_told_of_and_heard_again() -> None:
    caller, (ours, theirs) = End(), socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    with theirs:
        _, calling = await loop.create_unix_connection(lambda: Link(list[FromHost], caller), sock=ours)
        calling.pace(0.02)
        await until(lambda: caller.told == ["opened", "silent"])
        theirs.send(frame([Ping()]))
        await until(lambda: caller.told[:3] == ["opened", "silent", "heard"])
        assert calling.open
        calling.abort("the test is over")


async def test_a_frame_of_which_something_was_lost_ends_the_link_although_more_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "FRAME_S", 0.2)
    caller, (ours, theirs) = End(), socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    with theirs:
        _, calling = await loop.create_unix_connection(lambda: Link(list[FromHost], caller), sock=ours)
        calling.pace(0.02)
        theirs.send(frame([Text(1, "x" * 5000)])[:-1000])
        with anyio.fail_after(10):
            while calling.open:
                theirs.send(frame([Ping()]))
                await anyio.sleep(0.02)
        assert calling.reason == "a frame does not become complete"
        assert "silent" not in caller.told


async def test_who_speaks_and_does_not_read_loses_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "UNREAD_S", 0.2)
    host, (ours, theirs) = End(), socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    with theirs:
        _, hosting = await loop.create_unix_connection(lambda: Link(list[FromCaller], host), sock=ours)
        hosting.pace(0.02)
        with anyio.fail_after(10):
            while hosting.open:
                hosting.send(Text(1, "x" * 5000))
                theirs.send(frame([Ping()]))
                await anyio.sleep(0.02)
        assert hosting.reason == "the other end does not read"
        assert "silent" not in host.told


async def test_who_is_frozen_while_much_is_sent_to_it_reads_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "UNREAD_S", 0.2)
    host, (ours, theirs) = End(), socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    with theirs:
        transport, hosting = await loop.create_unix_connection(lambda: Link(list[FromCaller], host), sock=ours)
        hosting.pace(0.02)
        hosting.send(Text(1, "x" * 5_000_000))
        frozen_since = loop.time()
        await until(lambda: loop.time() - frozen_since > 0.5)
        assert host.told == ["opened", "silent"]
        theirs.send(frame([Ping()]))
        with anyio.fail_after(10):
            while transport.get_write_buffer_size():
                await loop.sock_recv(theirs, 1 << 16)
        assert hosting.open
        hosting.abort("the test is over")


def test_a_pace_that_nobody_could_keep_is_no_message() -> None:
    body = msgspec.msgpack.encode(Pace(0.0))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(body, type=Pace)
