"""A bare ASGI app under uvicorn: ready-made events, one `send` each. Nobody gets below that without leaving ASGI.

Run as a script, with the port as its argument; it imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"echo","choices":'
    b'[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)


async def app(scope: Message, receive: Receive, send: Callable[[Message], Awaitable[None]]) -> None:
    """GET gives 200 at once; POST as many events as ``max_tokens`` in its JSON body says."""
    count = 1 if scope["method"] == "GET" else json.loads(await _body(receive))["max_tokens"]
    await send(HEAD)
    for number in range(count):
        await send({"type": "http.response.body", "body": EVENT, "more_body": number < count - 1})
        await asyncio.sleep(0)


async def _body(receive: Receive) -> bytes:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    return body


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), http="httptools", loop="uvloop", lifespan="off", log_level="error")
