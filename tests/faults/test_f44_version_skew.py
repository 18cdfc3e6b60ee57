"""F44: a worker of another version works with this controller, or is refused by name, on both sides."""

from __future__ import annotations

import msgspec
import pytest

from fastchat_serve import __version__
from fastchat_serve.engine import CONTRACT
from fastchat_serve.protocol.frames import FrameReader, framed
from fastchat_serve.protocol.link import FromHost, Hello
from fastchat_serve.worker import dial, node
from tests.cluster import controller, worker
from tests.test_cluster import logged

pytestmark = pytest.mark.anyio


async def test_f44_engines_of_another_contract_are_refused_by_their_version(serving, caplog, monkeypatch):
    monkeypatch.setattr(node, "CONTRACT", CONTRACT - 1)
    monkeypatch.setattr(node, "__version__", "0.0.9")
    why = (
        f"its engines speak version {CONTRACT - 1} of the contract (fastchat-serve 0.0.9), and here it is version "
        f"{CONTRACT} (fastchat-serve {__version__}): install the same version on both sides"
    )
    async with serving(controller()) as there, serving(worker(there.url)):
        await logged(caplog, f"Not listed at {there.url}: {why}", f"A node at 127.0.0.1 is not listed: {why}")
        assert there.application.registry.workers == ()


async def test_f44_links_of_another_protocol_are_refused_by_its_name(serving, caplog, monkeypatch):
    monkeypatch.setattr(dial, "UPGRADE", "fastchat-link/0")
    async with serving(controller()) as there, serving(worker(there.url)):
        await logged(caplog, f"Not listed at {there.url}: {there.url} refuses: Links here speak fastchat-link/")
        assert "install the same version of fastchat-serve on both sides" in caplog.text


def test_f44_what_a_later_version_says_besides_is_passed_over():
    said = msgspec.msgpack.encode([["Hello", "node", 1, 1, "9.0", "http://there", "something new", {"and": "more"}]])
    assert FrameReader(list[FromHost]).feed(framed(said)) == [Hello("node", 1, 1, "9.0", "http://there")]
