"""huggingface_hub's client, made fit for a server.

`AsyncInferenceClient` enters every stream into an exit stack that it leaves when it is closed, and not before: streams
would pile up, and one that is given up would go on. So each request has a shallow copy of the client, with a stack of
its own; the connections are shared.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import httpx2
from huggingface_hub import AsyncInferenceClient, get_async_session
from huggingface_hub.utils._headers import build_hf_headers

from fastchat_backend_hf_inference.place import Place

__all__ = ["one_call", "opened_client"]

_CLOSE_S = 2.0
"""How long leaving a stream may take."""


@asynccontextmanager
async def opened_client(place: Place, *, bill_to: str | None, timeout_s: float) -> AsyncIterator[AsyncInferenceClient]:
    """A client of `place`, with its connections."""
    # Without a token, the client would read the one of this machine's login for each request, and send it anywhere.
    headers = {} if place.token else {"authorization": ""}
    client = AsyncInferenceClient(
        base_url=place.base_url, token=place.token or "none", timeout=timeout_s, headers=headers, bill_to=bill_to
    )
    async with await anyio.to_thread.run_sync(_session) as session:
        client._async_client = session
        yield client


def _session() -> httpx2.AsyncClient:
    """Reads certificates, and has the library look once for what it names in its headers. Not for the loop's thread."""
    build_hf_headers(token=False)
    return get_async_session()


@asynccontextmanager
async def one_call(client: AsyncInferenceClient) -> AsyncIterator[AsyncInferenceClient]:
    """`client` for one request, whose stream ends with it."""
    call = copy.copy(client)
    call.exit_stack = AsyncExitStack()
    try:
        yield call
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await call.exit_stack.aclose()
