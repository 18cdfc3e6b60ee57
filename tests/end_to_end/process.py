"""The server as its users start it: a process of its own, with signals and an exit code."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

__all__ = ["ServerProcess", "install_plugin", "started"]

PATIENCE_S = 30.0


class ServerProcess:
    """``python -m fastchat_serve`` with `arguments`, its standard error read as it comes. Waits are bounded."""

    def __init__(self, process: asyncio.subprocess.Process, patience_s: float) -> None:
        self.process, self._patience_s = process, patience_s
        self.log = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until standard error matches `pattern`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(self._patience_s):
            while (match := re.search(pattern, self.log)) is None:
                data = await self.process.stderr.readline()
                assert data, f"ended without saying {pattern!r}:\n{self.log}"
                self.log += data.decode()
        return match

    async def url(self) -> str:
        """Where it serves, once it does."""
        return (await self.says(r"Serving .* at (http://\S+)"))[1]

    async def ended(self) -> int:
        """Its exit code."""
        assert self.process.stderr is not None
        async with asyncio.timeout(self._patience_s):
            self.log += (await self.process.stderr.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def started(
    *arguments: str | Path,
    plugins: Path | None = None,
    shell: str = 'exec "$@"',
    patience_s: float = PATIENCE_S,
) -> AsyncIterator[ServerProcess]:
    """A process, killed at the end if it still runs.

    Args:
        plugins: A folder that `install_plugin` made.
        shell: How a shell is to start it.
    """
    search = [str(plugins)] * (plugins is not None) + sys.path
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", shell, "sh", sys.executable, "-m", "fastchat_serve", *map(str, arguments)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))},
    )
    try:
        yield ServerProcess(process, patience_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # its pipes, or the loop warns of them


def install_plugin(folder: Path, name: str, source: str) -> None:
    """Make `source` an installed distribution ``fake-NAME`` in `folder`, with one entry point called `name`."""
    (folder / f"fake_{name}.py").write_text(source)
    info = folder / f"fake_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fastchat_serve]\n{name} = fake_{name}\n")
