"""Connections in memory keep TCP's promises: all that is written arrives once and in order, unless they break."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from fastchat_serve.simulation.loop import SimulatedLoop, on, run


class Peer(asyncio.Protocol):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.events: list[str] = []
        self.transport: asyncio.Transport
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def pair(loop: SimulatedLoop) -> tuple[Peer, Peer]:
    accepted: list[Peer] = []

    def accept() -> Peer:
        accepted.append(Peer())
        return accepted[-1]

    with on("server"):
        await loop.create_server(accept, "server", 80)
    with on("client"):
        _, client = await loop.create_connection(Peer, "server", 80)
    return client, accepted[-1]


@pytest.mark.parametrize("seed", range(20))
def test_all_arrives_once_and_in_order_also_over_a_way_that_is_cut_for_a_while(seed: int) -> None:
    async def main(loop: SimulatedLoop) -> None:
        client, server = await pair(loop)
        random, sent = Random(seed), b""
        for number in range(200):
            data = bytes(random.randrange(256) for _ in range(random.randrange(1, 50)))
            sent += data
            client.transport.write(data)
            if number == 60:
                loop.network.cut("client", "server")
            if number == 120:
                loop.network.mend("client", "server")
            await asyncio.sleep(random.random() * 0.001)
        client.transport.close()
        await asyncio.sleep(1)
        assert server.received == sent
        assert (client.lost, server.lost) == ([None], [None])

    run(main, seed=seed)


def test_nothing_gets_over_a_way_that_is_cut_and_who_dials_waits() -> None:
    async def main(loop: SimulatedLoop) -> None:
        client, server = await pair(loop)
        loop.network.cut("client", "server")
        client.transport.write(b"a")
        with on("client"), pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await loop.create_connection(Peer, "server", 80)
        with on("elsewhere"):
            await loop.create_connection(Peer, "server", 80)
        assert server.received == b""
        loop.network.mend("client", "server")
        await asyncio.sleep(0.1)
        assert server.received == b"a"

    run(main)


def test_a_writer_is_told_when_too_much_is_on_its_way() -> None:
    async def main(loop: SimulatedLoop) -> None:
        client, _ = await pair(loop)
        client.transport.write(b"x" * 100_000)
        assert client.events == ["pause"]
        await asyncio.sleep(1)
        assert client.events == ["pause", "resume"]
        assert client.transport.get_write_buffer_size() == 0

    run(main)


def test_a_reader_that_pauses_gets_it_later() -> None:
    async def main(loop: SimulatedLoop) -> None:
        client, server = await pair(loop)
        server.transport.pause_reading()
        client.transport.write(b"abc")
        client.transport.close()
        await asyncio.sleep(1)
        assert (server.received, server.lost) == (b"", [])
        server.transport.resume_reading()
        await asyncio.sleep(0)
        assert (server.received, server.lost) == (b"abc", [None])

    run(main)


@pytest.mark.parametrize("how", ["abort", "reset", "kill"])
def test_both_ends_hear_once_that_a_connection_broke(how: str) -> None:
    async def main(loop: SimulatedLoop) -> None:
        client, server = await pair(loop)
        if how == "abort":
            server.transport.abort()
        elif how == "reset":
            loop.network.reset("client", "server")
        else:
            loop.kill("server")
        await asyncio.sleep(1)
        client.transport.write(b"for nobody")
        assert len(client.lost) == 1
        assert isinstance(client.lost[0], ConnectionResetError)
        assert server.lost == [] if how == "kill" else len(server.lost) == 1

    run(main)


def test_where_nothing_listens_a_connection_is_refused() -> None:
    async def main(loop: SimulatedLoop) -> None:
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Peer, "server", 80)
        await pair(loop)
        with pytest.raises(OSError, match="in use"):
            await loop.create_server(Peer, "server", 80)
        loop.kill("server")
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Peer, "server", 80)

    run(main)


def test_a_listener_that_closed_listens_no_more() -> None:
    async def main(loop: SimulatedLoop) -> None:
        server = await loop.create_server(Peer, "server", 80)
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Peer, "server", 80)

    run(main)


def test_one_seed_is_one_run() -> None:
    async def main(loop: SimulatedLoop) -> list[tuple[float, bytes]]:
        client, server = await pair(loop)
        seen: list[tuple[float, bytes]] = []
        server.data_received = lambda data: seen.append((loop.time(), data))  # type: ignore[method-assign]
        for number in range(50):
            client.transport.write(bytes([number]) * 9)
            await asyncio.sleep(0.0005)
        await asyncio.sleep(1)
        return seen

    assert run(main, seed=1) == run(main, seed=1) != run(main, seed=2)
