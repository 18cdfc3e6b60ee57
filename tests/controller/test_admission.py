"""Who is let in, and what is kept of those that come again and again."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

import anyio
import pytest

from fastchat_serve.controller.admission import Admission
from fastchat_serve.controller.fleet import Fleet
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engine import CONTRACT
from fastchat_serve.protocol.frames import frame
from fastchat_serve.protocol.link import Hello
from fastchat_serve.worker.dial import Credentials
from tests.worker.every_worker import until

pytestmark = pytest.mark.anyio


async def test_of_a_node_that_dials_out_again_and_again_only_its_last_link_is_kept():
    """As one does behind a firewall that forgets connections."""
    fleet, loop = Fleet(Registry()), asyncio.get_running_loop()
    admission = Admission(fleet, None, Credentials())
    links: list[weakref.ref[object]] = []
    async with anyio.create_task_group() as tasks:
        await tasks.start(admission.run)
        for incarnation in range(1, 6):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with theirs:
                _, link = await loop.create_unix_connection(admission.accept, sock=ours)
                links.append(weakref.ref(link))
                theirs.send(frame([Hello("node", incarnation, CONTRACT, "0")]))
                await until(lambda link=link: [*fleet.links] == [link])
            with anyio.fail_after(10):
                await link.wait_closed()
            del link
        tasks.cancel_scope.cancel()
    gc.collect()
    assert [bool(link()) for link in links] == [False] * 4 + [True]
