"""``fastchat-serve message``: one message to a model, and its answer as it comes. FastChat's test_message.

Over OpenAI's API, or over FastChat's own routes where the address of a controller or worker of its is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio
import msgspec

from fastchat_serve.commands.chat.over_http import over_http
from fastchat_serve.commands.chat.partner import Settings
from fastchat_serve.commands.client import RequestFailed, client_from
from fastchat_serve.engine import Message
from fastchat_serve.errors import ServeError
from fastchat_serve.fastchat.addresses import resolved
from fastchat_serve.fastchat.client import Client, NotOffered
from fastchat_serve.fastchat.conversation import render
from fastchat_serve.fastchat.cumulative import Cumulative
from fastchat_serve.protocol import fastchat as wire
from fastchat_serve.protocol import openai

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print what test_message prints; exit code 1 if there is no answer."""
    over_fastchat = args.controller_address or args.worker_address
    try:
        anyio.run(_print, _fastchat(args) if over_fastchat else _openai(args))
    except NotOffered as error:
        remedy = "If it is fastchat-serve, set [fastchat] enabled = true in its config, or talk to it with --url."
        print(f"fastchat-serve: {error} {remedy}", file=sys.stderr)
        return 1
    except (RequestFailed, ServeError) as error:
        print(f"fastchat-serve: {error}", file=sys.stderr)
        return 1
    return 0


async def _print(pieces: AsyncGenerator[str, None]) -> None:
    """As they come. The last line is ended in any case, so that an error stands on one of its own."""
    ended = True
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                print(piece, end="", flush=True)
                ended = piece.endswith("\n") if piece else ended
    finally:
        if not ended:
            print(flush=True)


async def _openai(args: argparse.Namespace) -> AsyncGenerator[str, None]:
    client = client_from(args, args.url)
    async with over_http(client, args.model_name) as partner:
        listed = msgspec.json.decode(await client.get("/v1/models"), type=openai.ModelList)
        yield f"Models: {_listed(card.id for card in listed.data)}\n"
        yield f"USER: {args.message}\nASSISTANT: "
        settings = Settings(args.temperature, args.max_new_tokens)
        async with aclosing(partner.answer([Message(role="user", content=args.message)], settings)) as chunks:
            async for chunk in chunks:
                yield chunk.text


async def _fastchat(args: argparse.Namespace) -> AsyncGenerator[str, None]:
    asked = wire.ModelQuery(args.model_name)
    async with AsyncExitStack() as clients:

        async def client_of(url: str) -> Client:
            dial = await resolved(url)
            return await clients.enter_async_context(Client(dial, dial.places[0]))

        address = args.worker_address
        if address is None:
            controller = await client_of(args.controller_address)
            await controller.call("/refresh_all_workers", None, Any)
            models = await controller.call("/list_models", None, wire.ModelNames)
            yield f"Models: {_listed(models.models)}\n"
            address = (await controller.call("/get_worker_address", asked, wire.Address)).address
            yield f"worker_addr: {address}\n"
        if not address:
            raise RequestFailed(f"No available workers for {args.model_name}")
        worker = await client_of(address)
        template = (await worker.call("/worker_get_conv_template", asked, wire.ConversationReply)).conv
        params = wire.GenerateParams(
            model=args.model_name,
            prompt=render(template, [Message(role="user", content=args.message)]),
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            stop=template.stop_str,
            stop_token_ids=template.stop_token_ids,
            echo=False,
        )
        yield f"USER: {args.message}\nASSISTANT: "
        text = Cumulative()
        async with aclosing(worker.messages("/worker_generate_stream", params)) as messages:
            async for message in messages:
                if message.error_code:
                    raise RequestFailed(f"The worker failed ({message.error_code}): {message.text}")
                yield text.feed(message.text)
        yield text.finish()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
