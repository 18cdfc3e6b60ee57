"""``python -m tests.bench.swarm URL TOKEN COUNT``: that many nodes in one process, for one controller.

Their links are the product's; the worker behind each is a dummy, as it is the controller that is measured. Each listens
on a port of its own, where it can be called back. Says "ready" once all listen, dials when it reads a line, and ends
with its standard input.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from functools import partial

import anyio

from fastchat_serve.descriptors import raise_limit
from fastchat_serve.engine import Capability, EngineInfo
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.dial import UPGRADE, Credentials
from fastchat_serve.worker.heartbeat import Membership
from fastchat_serve.worker.node import Node
from fastchat_serve.worker.remote import RemoteWorker


class Dummy(RemoteWorker):
    """A worker that is always ready and never asked."""

    info = EngineInfo(context_length=4096, capabilities=frozenset({Capability.GENERATE, Capability.TEXT_PROMPT}))

    def __init__(self, number: int) -> None:
        super().__init__(f"dummy-{number}", ("dummy",), slots=16, queue_limit=64)
        self.state = WorkerState.READY


class Door(asyncio.Protocol):
    """Takes whatever comes for a request to be a link."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" not in self._head:
            return
        offer = UPGRADE.encode()
        self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: " + offer + b"\r\n\r\n")
        link = self._node.host()
        self._transport.set_protocol(link)
        link.connection_made(self._transport)


async def main(url: str, token: str, count: int) -> None:
    """Run the swarm until standard input ends."""
    loop = asyncio.get_running_loop()
    credentials = Credentials(f"Bearer {token}".encode())
    memberships = []
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            dummy = Dummy(number)
            node = Node({dummy.id: dummy})
            await tasks.start(node.run)
            server = await loop.create_server(partial(Door, node), "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            address = f"http://127.0.0.1:{port}"
            memberships.append(Membership(node, [url], lambda _, address=address: address, credentials))  # type: ignore[misc]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.readline)
        for membership in memberships:
            tasks.start_soon(membership.run)
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    raise_limit()
    gc.disable()  # what one of these hosts has would keep no collector busy; what all have would keep this one
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), backend_options={"use_uvloop": True})
