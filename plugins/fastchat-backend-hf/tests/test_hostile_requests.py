"""S9: hostile requests to a server with a real model: none ends the engine, or any other request."""

from __future__ import annotations

import pytest

from tests.hostile.case import SILENCE, chat
from tests.hostile.corpus import WRITTEN
from tests.hostile.judge import assert_harmless, assert_openai_error
from tests.hostile.victim import attacked

pytestmark = pytest.mark.anyio

ROWS = ("S3", "S6 S7", "S8", "S9 S10", "F32")
"""Those that are about what reaches an engine."""
CASES = {name: case for name, case in WRITTEN.items() if name.startswith(ROWS) and SILENCE not in case.statuses}
WORKER = """
backend = "hf"
model = "{folder}"
options = {{ device = "cpu", kv_cache_tokens = 4096 }}
"""


@pytest.mark.timeout(300)
async def test_the_engine_answers_a_good_request_after_every_hostile_one(folder, tmp_path):
    """What it says to them is its own affair (it can do more than `echo`), but it is no failure of the server."""
    async with attacked(tmp_path, keys=True, worker=WORKER.format(folder=folder("llama"))) as victim:
        for name, case in CASES.items():
            async with victim.connected() as client:
                client.send(case.sends)
                reply = await client.reply()
            assert reply is not None, name
            assert reply.status < 500, (name, reply)
            assert_harmless(reply, case.sends, victim.secrets)
            if reply.status >= 400:
                assert_openai_error(reply)

            async with victim.connected() as client:
                client.send(chat(max_tokens=1))
                reply = await client.reply()
            assert reply is not None, name
            assert reply.status == 200, (name, reply)

        assert len(CASES) > 200
        assert "Traceback" not in victim.output()
