"""What the server itself costs: CPU time per token and per request on `echo`, against a bare ASGI app.

The baseline is a plain ASGI function under the same uvicorn, which sends the same number of ready-made
events, one `send` each: what nobody can go below without leaving ASGI. Keys and metrics are on in ours.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import psutil

SECONDS = 4.0
CLIENTS = 16
TOKENS = 128

BARE = """
import asyncio, json, sys, uvicorn
HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
CHOICE = '{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}'
KIND = '"object":"chat.completion.chunk","created":0,"model":"echo"'
EVENT = ('data: {"id":"chatcmpl-0",' + KIND + ',"choices":[' + CHOICE + ']}\\n\\n').encode()
async def app(scope, receive, send):
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    count = json.loads(body)["max_tokens"]
    await send(HEAD)
    for number in range(count):
        await send({"type": "http.response.body", "body": EVENT, "more_body": number < count - 1})
        await asyncio.sleep(0)
uvicorn.run(app, port=int(sys.argv[1]), http="httptools", loop="uvloop", lifespan="off", log_level="error")
"""

CONFIG = """
[server]
port = 0
[controller]
[api]
keys = ["sk-bench"]
[[worker]]
backend = "echo"
names = ["echo"]
concurrency = 256
[worker.options]
loop = true
"""


def measure() -> list[dict[str, object]]:
    """CPU per token of streams and per request of plain replies of one token; `ratio` is against the bare app."""
    with tempfile.TemporaryDirectory() as folder:
        bare, ours = _start_bare(Path(folder)), _start_ours(Path(folder))
        rows: list[dict[str, object]] = []
        try:
            for what, tokens in (("stream, us/token", TOKENS), ("request of one token, us", 1)):
                base = _cost_us(*bare, tokens)
                cost = _cost_us(*ours, tokens)
                rows.append({"what": what, "bare ASGI": base, "fastchat-serve": cost, "ratio": cost / base})
        finally:
            for process, _ in (bare, ours):
                process.terminate()
                process.wait(10)
    return rows


def _start_bare(folder: Path) -> tuple[subprocess.Popen[str], int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = folder / "bare.py"
    script.write_text(BARE)
    process = subprocess.Popen([sys.executable, str(script), str(port)], text=True)
    _wait_for(port)
    return process, port


def _start_ours(folder: Path) -> tuple[subprocess.Popen[str], int]:
    path = folder / "bench.toml"
    path.write_text(CONFIG)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastchat_serve", "--config", str(path)], text=True, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found[1])
    raise RuntimeError("the server did not start")


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server did not start")


def _cost_us(process: subprocess.Popen[str], port: int, tokens: int) -> float:
    """CPU microseconds of the server per token, under `CLIENTS` closed-loop clients."""
    server = psutil.Process(process.pid)
    stop = threading.Event()
    counts = [0] * CLIENTS
    threads = [threading.Thread(target=_client, args=(port, tokens, counts, i, stop)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    begin, before = sum(counts), sum(server.cpu_times()[:2])
    time.sleep(SECONDS)
    end, after = sum(counts), sum(server.cpu_times()[:2])
    stop.set()
    for thread in threads:
        thread.join(10)
    return (after - before) * 1e6 / max(1, end - begin)


def _client(port: int, tokens: int, counts: list[int], number: int, stop: threading.Event) -> None:
    body = json.dumps(
        {
            "model": "echo",
            "stream": tokens > 1,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "a b c d"}],
        }
    ).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    while not stop.is_set():
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        counts[number] += tokens
    connection.close()
