"""S1: which addresses that somebody registers are dialled."""

from __future__ import annotations

import pytest

from fastchat_serve.errors import Forbidden, InvalidRequest
from fastchat_serve.fastchat.addresses import Networks, permitted, resolved

pytestmark = pytest.mark.anyio

NETWORKS = Networks(["127.0.0.0/8", "::1/128", "10.0.0.0/8"])


@pytest.mark.parametrize(
    ("url", "registered_by"),
    [
        ("http://127.0.0.1:21002", "127.0.0.1"),
        ("http://127.0.0.1:21002", "::1"),
        ("http://192.0.2.7:21002", "192.0.2.7"),
        ("http://192.0.2.7:21002", "::ffff:192.0.2.7"),
        ("http://[2001:db8::7]:21002", "2001:db8::7"),
        ("http://10.1.2.3:21002/", "10.9.9.9"),
        ("https://10.1.2.3", "192.0.2.7"),
    ],
)
async def test_s1_a_peers_own_address_and_the_networks_are_dialled(url: str, registered_by: str) -> None:
    dial = await permitted(url, registered_by, NETWORKS)

    assert dial.url == url.rstrip("/")
    assert dial.places


@pytest.mark.parametrize(
    ("url", "registered_by"),
    [
        ("http://192.0.2.8:21002", "192.0.2.7"),
        ("http://169.254.169.254:80", "127.0.0.1"),
        ("http://127.0.0.1:6379", "10.0.0.5"),
        ("http://localhost:6379", "10.0.0.5"),
        ("http://[::ffff:127.0.0.1]:6379", "10.0.0.5"),
        ("http://0.0.0.0:21002", "10.0.0.5"),
        ("http://0.0.0.0:21002", "127.0.0.1"),
        ("http://[::]:21002", "127.0.0.1"),
        ("http://2130706433:6379", "10.0.0.5"),
        ("http://0x7f.1:6379", "10.0.0.5"),
    ],
)
async def test_s1_anywhere_else_is_refused(url: str, registered_by: str) -> None:
    with pytest.raises((Forbidden, InvalidRequest)):
        await permitted(url, registered_by, NETWORKS)


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:21002", "ftp://127.0.0.1:21002", "file:///etc/passwd", "http://", "http://:21002"),
        *("http://127.0.0.1:99999", "http://127.0.0.1:0", "http://127.0.0.1:21002/path", "http://a@127.0.0.1:1"),
        *("http://127.0.0.1:21002?x=1", "http://127.0.0.1:21002#x", "http://127.0.0.1:1\r\nx: y", "http://[::1"),
        *("http://exa mple:1", "http://no-such-host.invalid:1", "http://127.0.0.1\\@evil:1", "http://" + "a" * 300),
    ],
)
async def test_s1_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        await resolved(url)


async def test_a_name_is_dialled_at_what_it_resolved_to() -> None:
    dial = await resolved("http://localhost:21002")

    assert dial.host == "localhost"
    assert "http://127.0.0.1:21002" in dial.places
