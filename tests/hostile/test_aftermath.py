"""The whole corpus against one server, many clients at once: what it leaves behind (G8, G16, F42, S15, S23)."""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

import psutil
import pytest

from tests.hostile.attack import attack, slots_in_use
from tests.hostile.case import KEY, PROMPT, Case, chat, get
from tests.hostile.corpus import CORPUS
from tests.hostile.victim import attacked

pytestmark = pytest.mark.anyio

CLIENTS = 4
GROWTH_BYTES = 64 * 2**20


class Before(NamedTuple):
    peak_bytes: int
    descriptors: int


@pytest.fixture(scope="module")
async def aftermath(tmp_path_factory):
    """A server that has been through everything, and what it was like before."""
    async with attacked(tmp_path_factory.mktemp("after"), keys=True) as victim:
        await attack(victim, Case(200, chat(stream=True)))
        before = Before(victim.peak_bytes(), psutil.Process(victim.process.pid).num_fds())
        left = iter(CORPUS.items())

        async def client() -> None:
            for name, case in left:
                try:
                    await attack(victim, case)
                except BaseException as error:
                    error.add_note(name)
                    raise

        async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(client())
        yield victim, before


@pytest.fixture
def after(aftermath):
    """The server alone."""
    return aftermath[0]


async def test_memory_stays_within_64_mib_of_the_start(aftermath):
    """The peak, not what is left."""
    victim, before = aftermath
    assert victim.peak_bytes() - before.peak_bytes <= GROWTH_BYTES


async def test_no_slot_connection_or_descriptor_is_left(aftermath):
    after, before = aftermath
    process = psutil.Process(after.process.pid)
    async with asyncio.timeout(5):
        while await slots_in_use(after) or process.num_fds() > before.descriptors:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_s2_s3_nothing_was_fetched(after):
    assert after.touched == 0


async def test_s15_no_output_shows_a_key_or_a_prompt(after):
    """At the log level that says most; the metrics, too."""
    async with after.connected() as client:
        client.send(get("/metrics"))
        metrics = await client.reply()
        client.send(get("/schema"))
        schema = await client.reply()
    output = after.output() + metrics.body.decode() + schema.body.decode()

    assert "Serving echo" in output, "the log is read"
    for secret in (KEY, PROMPT):
        assert secret not in output


async def test_s20_no_output_was_written_by_a_client(after):
    """Each line of the log begins as ours do, and no control character is in it."""
    output = after.output()

    assert "Traceback" not in output
    assert "GET /health" in output, "requests are logged"
    assert re.search(r"[^\n -~]", output) is None
    assert "hacked" not in output
