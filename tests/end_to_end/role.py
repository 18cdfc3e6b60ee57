"""A role of a cluster in a process of its own, which can be killed and started again under the same config."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

__all__ = ["Role", "roles"]

PATIENCE_S = 30.0
_LOOK_S = 0.01


class Role:
    """``python -m fastchat_serve`` with one config, from one life to the next.

    Args:
        folder: Its config and its log are put there.
        prefix: Of the command: where it is to run.
    """

    def __init__(self, name: str, config: str, folder: Path, prefix: Iterable[str] = ()) -> None:
        self.name, self.config, self._prefix = name, config, tuple(prefix)
        self._path, self._log = folder / f"{name}.toml", folder / f"{name}.log"
        self._path.write_text(config)
        self._log.touch()
        self._lives: list[asyncio.subprocess.Process] = []

    @property
    def log(self) -> str:
        """Of all its lives."""
        return self._log.read_text()

    async def start(self) -> None:
        """Return when it serves."""
        await self.launch()
        await self.says("Serving ", len(self._lives))

    async def launch(self) -> None:
        """Start it, and do not wait."""
        with self._log.open("a") as log:
            process = await asyncio.create_subprocess_exec(
                *(*self._prefix, sys.executable, "-m", "fastchat_serve", "--config", str(self._path)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._lives.append(process)

    async def says(self, text: str, times: int = 1, within_s: float = PATIENCE_S) -> None:
        """Wait until its log has `text` so many times."""
        try:
            async with asyncio.timeout(within_s):
                while self.log.count(text) < times:  # noqa: ASYNC110 - a file sets no event
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not say {text!r} {times} times:\n{self.log}") from None

    def send(self, number: signal.Signals) -> None:
        self._lives[-1].send_signal(number)

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    async def kill(self) -> None:
        """As a crash does."""
        self.send(signal.SIGKILL)
        await self.ended()

    async def restart(self) -> None:
        """As an update does: let it finish its work, and start it again."""
        self.send(signal.SIGTERM)
        assert await self.ended() == 0, self.log
        await self.start()

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._lives[-1].wait()

    async def close(self) -> None:
        """Whatever it does, it is gone."""
        for process in self._lives:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # or the loop warns of it


@asynccontextmanager
async def roles() -> AsyncIterator[list[Role]]:
    """Put roles into this list; they are gone at the end."""
    listed: list[Role] = []
    try:
        yield listed
    finally:
        for role in listed:
            await role.close()
