"""The server under attack: a process of its own, as its users start it, at its most talkative."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.hostile.case import KEY, PROMPT
from tests.hostile.judge import Reply

__all__ = ["Client", "Victim", "attacked"]

PATIENCE_S = 20.0
"""To start and to stop; no reply may take as long."""
REPLY_S = 5.0
"""For the reply to any hostile request; a generous bound for what should take milliseconds."""

CONFIG = """
[server]
port = 0
log_level = "debug"
access_log = true
drain_s = 1.0
[controller]
[api]
{keys}
[[worker]]
names = ["echo", "org/echo"]
{worker}
"""


class Client:
    """One connection. Replies are taken apart strictly: what is no HTTP fails here."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def send_eof(self) -> None:
        with suppress(OSError):
            self._writer.write_eof()

    async def reply(self, *, to_head: bool = False) -> Reply | None:
        """The next reply; None if the server closes instead. `to_head`: it has no body, whatever it says."""
        async with asyncio.timeout(REPLY_S):
            try:
                return await self._reply(to_head)
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    raise AssertionError(f"broken off after {end.partial[:500]!r}") from end
                return None
            except ConnectionResetError:  # the server may close while there is more to read
                return None

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        received = b""
        async with asyncio.timeout(REPLY_S):
            with suppress(ConnectionResetError):
                while data := await self._reader.read(2**16):
                    received += data
        return received

    def close(self) -> None:
        self._writer.transport.abort()

    async def _reply(self, to_head: bool) -> Reply:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = re.fullmatch(r"HTTP/1\.1 (\d{3}) [\w -]*", first)
        assert status is not None, first
        if status[1] == "100":
            return await self._reply(to_head)
        fields = [re.fullmatch(r"([\w-]+): ([^\r\n]*)", line) for line in lines]
        assert all(fields), lines
        headers = tuple((field[1].lower(), field[2]) for field in fields if field)
        reply = Reply(int(status[1]), headers, b"")
        if to_head or reply.status == 204:
            return reply
        if reply.header("transfer-encoding") == "chunked":
            body = b"".join([part async for part in self._chunks()])
        elif length := reply.header("content-length"):
            body = await self._reader.readexactly(int(length))
        else:
            assert reply.closes, "a body without end"
            body = await self._reader.read()
        return Reply(reply.status, headers, body)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        assert await self._reader.readexactly(2) == b"\r\n"


class Victim:
    """The process. `canary`: a port that nobody may connect to; `touched` counts who did."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path, canary: int) -> None:
        self.process, self._output, self.canary = process, output, canary
        self.port = 0
        self.touched = 0

    async def started(self) -> None:
        """Wait until it serves."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := re.search(r"Serving .* at http://127.0.0.1:(\d+)", self.output())) is None:
                assert self.process.returncode is None, self.output()
                await asyncio.sleep(0.02)  # a file does not tell that it grows
        self.port = int(found[1])

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20))
        try:
            yield client
        finally:
            client.close()

    @property
    def secrets(self) -> list[str]:
        """What no error and no header may show."""
        return [KEY, PROMPT, str(Path.cwd()), str(Path.home()), str(self._output.parent), f":{self.port}"]

    def output(self) -> str:
        """All that it has written to standard output and standard error."""
        return self._output.read_text("utf-8")

    def peak_bytes(self) -> int:
        """The most memory that it ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


@asynccontextmanager
async def attacked(folder: Path, *, keys: bool, worker: str = 'backend = "echo"') -> AsyncIterator[Victim]:
    """A server to attack. At the end it is told to stop, and has to be in order for that."""
    config, output = folder / "config.toml", folder / "output.txt"
    config.write_text(CONFIG.format(keys=f'keys = ["{KEY}"]' if keys else "", worker=worker))
    search = os.pathsep.join(filter(None, sys.path))
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fastchat_serve", "--config", str(config)),
            stdout=file,
            stderr=file,
            env=os.environ | {"PYTHONPATH": search, "PYTHONUNBUFFERED": "1"},
        )

    async def touch(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        victim.touched += 1
        writer.close()

    canary = await asyncio.start_server(touch, "127.0.0.1")
    victim = Victim(process, output, canary.sockets[0].getsockname()[1])
    try:
        await victim.started()
        yield victim
        process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
    finally:
        canary.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # or the loop warns of it
