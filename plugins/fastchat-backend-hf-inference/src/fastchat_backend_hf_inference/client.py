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

from fastchat_backend_hf_inference.place import Place

__all__ = ["one_call", "opened_client"]

_CLOSE_S = 2.0
"""How long leaving a stream may take."""


@asynccontextmanager
async def opened_client(place: Place, *, bill_to: str | None, timeout_s: float) -> AsyncIterator[AsyncInferenceClient]:
    """A client of `place`, with its connections."""
    # Without a token of ours, the client would send the one of this machine's login to any endpoint.
    headers = {} if place.token else {"authorization": ""}
    client = AsyncInferenceClient(
        base_url=place.base_url, token=place.token or None, timeout=timeout_s, headers=headers, bill_to=bill_to
    )
    session: httpx2.AsyncClient = await anyio.to_thread.run_sync(get_async_session)  # reads certificates
    async with session:
        client._async_client = session
        yield client


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
