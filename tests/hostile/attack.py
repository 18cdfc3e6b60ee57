"""Send one case, judge what comes back, and see that the server is as it was."""

from __future__ import annotations

import json

from tests.hostile.case import CANARY, PROMPT, SILENCE, Case, chat, get
from tests.hostile.judge import Reply, assert_harmless, assert_openai_error
from tests.hostile.victim import Client, Victim

__all__ = ["attack", "attack_without_key", "slots_in_use"]

PUBLIC = (b"GET /health ", b"GET /ready ")
"""What anybody may ask."""

MARK = "the-next-request"


async def attack(victim: Victim, case: Case) -> None:
    """The case as it is, from somebody with a key."""
    for reply in await _exchange(victim, case, case.sends):
        assert reply.status in case.statuses, reply
        if case.param is not None:
            assert assert_openai_error(reply)["param"] == case.param


async def attack_without_key(victim: Victim, case: Case) -> None:
    """The same from somebody without: refused, and what is in the body makes no difference (G16)."""
    allowed = {401}
    if case.before_keys:
        allowed.update(case.statuses)
        if not case.sends.startswith(PUBLIC):
            allowed.discard(200)
    for reply in await _exchange(victim, case, case.without_key()):
        assert reply.status in allowed, reply


async def _exchange(victim: Victim, case: Case, sends: bytes) -> list[Reply]:
    """All replies to `case`, each of them harmless; before returning, good requests were answered."""
    sends = sends.replace(CANARY.encode(), f"127.0.0.1:{victim.canary:05}".encode())
    replies: list[Reply] = []
    async with victim.connected() as client:
        client.send(sends)
        if SILENCE in case.statuses:
            client.send_eof()
        to_head = sends.startswith(b"HEAD ")
        while len(replies) < case.replies and (reply := await client.reply(to_head=to_head)) is not None:
            assert_harmless(reply, sends, victim.secrets)
            if reply.status >= 400 and not to_head:
                assert_openai_error(reply)
            replies.append(reply)
            if reply.closes:
                break
        if SILENCE not in case.statuses:
            assert replies, "closed without a reply"
            await _expect_nothing_more(client, closes=replies[-1].closes)
    await _expect_a_good_answer(victim)
    assert victim.touched == 0, "something connected to an address out of the request"
    return replies


async def _expect_nothing_more(client: Client, *, closes: bool) -> None:
    """The next reply is that to the next request: nothing of the last one was left over or made a second."""
    if closes:
        assert await client.closed() == b""
        return
    client.send(get("/health", f"x-request-id: {MARK}\r\n".encode()))
    reply = await client.reply()
    assert reply is not None, "closed without saying that it would"
    assert (reply.status, reply.header("x-request-id")) == (200, MARK)


async def _expect_a_good_answer(victim: Victim) -> None:
    """From somebody else, on a connection of their own."""
    async with victim.connected() as client:
        client.send(chat())
        reply = await client.reply()
    assert reply is not None
    assert reply.status == 200
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == PROMPT


async def slots_in_use(victim: Victim) -> int:
    """Requests that run or wait, as the server itself says."""
    async with victim.connected() as client:
        client.send(get("/cluster/workers"))
        reply = await client.reply()
    assert reply is not None
    return sum(worker["running"] + worker["waiting"] for worker in json.loads(reply.body)["workers"])
