"""What the upstream says of itself: its models, their context, and which dialect it speaks."""

from __future__ import annotations

import logging
from http import HTTPStatus

import anyio
import msgspec
from msgspec import Struct

from fastchat_backend_openai.dialects import dialect_of_owner
from fastchat_backend_openai.events import ModelCard, ModelList
from fastchat_backend_openai.http import Reply, Upstream
from fastchat_backend_openai.options import DialectName, OpenAIOptions
from fastchat_serve import Capability, Progress, ServeError, StartupError

__all__ = ["Found", "probe"]

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 16 * 1024 * 1024
_RETRY_S = 1.0


class Found(Struct, frozen=True):
    """What is known of the upstream. `workers` is what a fastchat-serve says its workers can do; None: it does not."""

    model: str
    dialect: DialectName
    context_length: int | None = None
    workers: frozenset[Capability] | None = None


class _WorkerCard(Struct):
    models: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


class _WorkerList(Struct):
    workers: tuple[_WorkerCard, ...] = ()


async def probe(
    upstream: Upstream, path: str, root: str, model: str, options: OpenAIOptions, progress: Progress
) -> Found:
    """Ask for the list of models below `path`, and find `model` in it; the only one there is, if it is empty.

    Args:
        root: The path of the server itself, where it is another fastchat-serve.

    Raises:
        StartupError: The upstream is not there, refuses us, or does not have the model.
    """
    reply = await _ask(upstream, f"{path}/models", options.wait_s, progress)
    cards = _cards(reply)
    card = _find(cards, model)
    owner = (card.owned_by if card is not None else None) or (cards[0].owned_by if cards else None) or ""
    dialect = dialect_of_owner(owner) if options.dialect == "auto" else options.dialect
    name = card.id if card is not None else model
    workers = None
    if dialect == "fastchat-serve":
        workers = await _workers(upstream, f"{root}/cluster/workers", name)
    return Found(name, dialect, _context_length(card), workers)


async def _ask(upstream: Upstream, path: str, wait_s: float, progress: Progress) -> Reply:
    give_up_at = anyio.current_time() + wait_s
    while True:
        progress("asking the upstream for its models")
        try:
            reply = await upstream.fetch(upstream.get(path), MAX_LIST_BYTES)
        except ServeError as error:
            problem = str(error)
        else:
            if reply.head.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise StartupError(
                    f"The upstream refuses our credentials (status {reply.head.status}). Check api_key or api_key_env."
                )
            if reply.head.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return reply
            problem = f"The upstream answers with status {reply.head.status}."
        if anyio.current_time() + _RETRY_S > give_up_at:
            raise StartupError(
                f"{problem} Is it running, and is base_url right? wait_s waits for it, lazy = true starts without it."
            )
        progress("waiting for the upstream")
        await anyio.sleep(_RETRY_S)


def _cards(reply: Reply) -> list[ModelCard]:
    """The models it has; none if it keeps no list, as some do not."""
    if reply.head.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED):
        return []
    if reply.head.status != HTTPStatus.OK:
        raise StartupError(f"Asked for its models, the upstream answers with status {reply.head.status}.")
    try:
        return msgspec.json.decode(reply.body, type=ModelList).data
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise StartupError("What is at base_url does not speak OpenAI's API; it mostly ends in /v1.") from None


def _find(cards: list[ModelCard], model: str) -> ModelCard | None:
    names = [card.id for card in cards]
    if not model:
        if len(cards) == 1:
            return cards[0]
        raise StartupError(f"Name a model of the upstream. It has: {_listed(names)}.")
    for card in cards:
        if card.id in (model, f"{model}:latest"):  # Ollama's tag
            return card
    if cards:
        raise StartupError(f"The upstream has no model {model!r}. It has: {_listed(names)}.")
    return None


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:20])
    return (shown or "none") + (", …" if len(names) > 20 else "")


def _context_length(card: ModelCard | None) -> int | None:
    if card is None:
        return None
    meta = card.meta
    return card.max_model_len or card.context_length or (meta and (meta.n_ctx or meta.n_ctx_train)) or None


async def _workers(upstream: Upstream, path: str, model: str) -> frozenset[Capability] | None:
    """What all workers of a model have in common, if a fastchat-serve tells."""
    try:
        reply = await upstream.fetch(upstream.get(path), MAX_LIST_BYTES)
        cards = msgspec.json.decode(reply.body, type=_WorkerList).workers if reply.head.status == HTTPStatus.OK else ()
    except (ServeError, msgspec.DecodeError, UnicodeError):
        return None
    known = {capability.value for capability in Capability}
    found = [
        frozenset(map(Capability, known & set(card.capabilities)))
        for card in cards
        if model in card.models and card.capabilities
    ]
    return frozenset.intersection(*found) if found else None
