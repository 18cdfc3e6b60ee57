"""``python -m tests.hostile --minutes 20``: damage the corpus at random, and see what a server makes of it.

What it finds is printed as bytes, to become a case of the corpus. The seed is printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.hostile.attack import attack, slots_in_use
from tests.hostile.case import CANARY, Case, chat, get
from tests.hostile.corpus import CORPUS
from tests.hostile.judge import assert_harmless, assert_openai_error
from tests.hostile.mutate import mutated
from tests.hostile.victim import Victim, attacked

CLIENTS = 4
SEED_BYTES = 3000
"""Longer cases are left out, for sending them is all they would do; so is HEAD, whose replies have no end to see."""
SILENCE_S = 0.3
"""Then the request is taken to be unfinished."""
MARK = "the-next-request"
NEXT = get("/health", f"x-request-id: {MARK}\r\n".encode())
CHECK_EVERY = 500


async def main(minutes: float, seed: int) -> int:
    """Returns how many requests showed something wrong."""
    seeds = [case.sends for case in CORPUS.values() if len(case.sends) <= SEED_BYTES and case.sends[:4] != b"HEAD"]
    until, draw = time.monotonic() + minutes * 60, random.Random(seed)
    sent = found = 0
    with tempfile.TemporaryDirectory() as folder:
        async with attacked(Path(folder), keys=True) as victim:
            before = victim.peak_bytes()

            async def client() -> None:
                nonlocal sent, found
                while time.monotonic() < until:
                    data = mutated(seeds, draw)
                    sent += 1
                    try:
                        await _try(victim, data)
                        if sent % CHECK_EVERY == 0:
                            await attack(victim, Case(200, chat()))
                    except (AssertionError, ValueError, TimeoutError, OSError) as error:
                        found += 1
                        print(f"{type(error).__name__}: {error}\n{data!r}\n", flush=True)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(client())
            await asyncio.sleep(1)
            left, grown = await slots_in_use(victim), victim.peak_bytes() - before
            raised = victim.output().count("Traceback")
    print(f"seed {seed}: {sent} requests, {found} finds, {raised} tracebacks, {left} slots, {grown >> 20} MiB more")
    return found + raised + left


async def _try(victim: Victim, data: bytes) -> None:
    data = data.replace(CANARY.encode(), f"127.0.0.1:{victim.canary:05}".encode())
    async with victim.connected() as client:
        client.send(data + NEXT)
        try:
            async with asyncio.timeout(SILENCE_S):
                while (reply := await client.reply()) is not None:
                    if reply.header("x-request-id") == MARK:
                        break
                    assert_harmless(reply, data, victim.secrets)
                    if reply.status >= 400:
                        assert_openai_error(reply)
        except TimeoutError:
            pass
    assert victim.touched == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    sys.exit(1 if asyncio.run(main(arguments.minutes, arguments.seed)) else 0)
