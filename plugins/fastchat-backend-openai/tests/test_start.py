"""Opening an engine: the upstream is asked who it is, and whatever an operator got wrong is said plainly."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest
from raw_upstream import DONE, Opened, RawUpstream, Request, answer_of, chat_event, head

from fastchat_serve import Capability, EngineError, Secret, StartupError

pytestmark = pytest.mark.anyio


def lists(*cards: dict[str, Any], status: int = 200) -> Any:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"object": "list", "data": cards}).encode()
        writer.write(head(status, content_type="application/json", content_length=str(len(body))) + body)

    return handler


async def info(opened: Opened, handler: Any, model: str = "m", **options: Any) -> Any:
    async with RawUpstream(handler) as upstream, opened(f"{upstream.url}/v1", model, **options) as engine:
        return engine.info


async def complaint(opened: Opened, handler: Any, model: str = "m", **options: Any) -> str:
    with pytest.raises(StartupError) as caught:
        await info(opened, handler, model, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("owner", "capability"),
    [
        ("vllm", Capability.TOKEN_IDS),
        ("sglang", Capability.REGEX),
        ("llamacpp", Capability.MIN_P),
        ("library", Capability.TEXT_PROMPT),
        ("organization_owner", Capability.TOP_K),
    ],
)
async def test_the_list_of_models_gives_the_dialect_away(opened: Opened, owner: str, capability: Capability) -> None:
    assert capability in (await info(opened, lists({"id": "m", "owned_by": owner}))).capabilities


async def test_an_unknown_server_is_taken_for_a_plain_one(opened: Opened) -> None:
    found = (await info(opened, lists({"id": "m", "owned_by": "me"}))).capabilities

    assert {Capability.CHAT, Capability.TOOLS, Capability.TOOL_CALLS} <= found
    assert not {Capability.TOP_K, Capability.TEXT_PROMPT, Capability.EMBED} & found


async def test_the_context_length_is_what_the_server_says_unless_the_operator_knows_better(opened: Opened) -> None:
    server = lists({"id": "m", "max_model_len": 77})

    assert (await info(opened, server)).context_length == 77
    assert (await info(opened, server, context_length=8)).context_length == 8
    llamacpp = await info(opened, lists({"id": "m", "meta": {"n_ctx_train": 99}}))
    assert llamacpp.context_length == 99
    assert any("context length" in note for note in (await info(opened, lists({"id": "m"}))).notes)


async def test_what_a_server_lacks_is_not_declared(opened: Opened) -> None:
    found = await info(opened, lists({"id": "m"}), lacks=(Capability.TOOLS, Capability.LOGPROBS))

    assert not {Capability.TOOLS, Capability.TOOL_CALLS, Capability.LOGPROBS} & found.capabilities


async def test_only_the_apis_asked_for_are_offered(opened: Opened) -> None:
    found = (await info(opened, lists({"id": "m"}), apis=("embeddings",))).capabilities

    assert found == {Capability.EMBED}


async def test_the_only_model_needs_no_name(opened: Opened) -> None:
    async with RawUpstream(lists({"id": "only"})) as upstream, opened(f"{upstream.url}/v1") as engine:
        assert engine._model == "only"
    assert "one, two" in await complaint(opened, lists({"id": "one"}, {"id": "two"}), "")


async def test_a_model_that_is_not_there_is_said_with_those_that_are(opened: Opened) -> None:
    assert "no model 'm'. It has: n." in await complaint(opened, lists({"id": "n"}))


async def test_a_server_without_a_list_is_believed(opened: Opened) -> None:
    assert Capability.CHAT in (await info(opened, lists(status=404))).capabilities


async def test_refused_credentials_are_said(opened: Opened) -> None:
    text = await complaint(opened, lists(status=401), api_key=Secret("sk-wrong"))

    assert "credentials" in text
    assert "sk-wrong" not in text


async def test_something_else_at_the_address_is_said(opened: Opened) -> None:
    async def page(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_type="text/html", content_length="6") + b"<html>")

    assert "does not speak OpenAI's API" in await complaint(opened, page)


async def test_nobody_at_the_address_is_said(opened: Opened) -> None:
    with pytest.raises(StartupError, match="cannot be reached"):
        async with opened("http://127.0.0.1:9/v1", "m"):
            pass


async def test_a_server_that_is_still_loading_is_waited_for(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat_backend_openai.probe._RETRY_S", 0.01)
    answers = iter([lists(status=503), lists({"id": "m"})])

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await next(answers)(request, writer)

    assert Capability.CHAT in (await info(opened, handler, wait_s=20)).capabilities


async def test_lazy_needs_a_model(opened: Opened) -> None:
    with pytest.raises(StartupError, match="lazy"):
        async with opened("http://127.0.0.1:9/v1", "", lazy=True):
            pass


@pytest.fixture
async def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for localhost, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    pem = tmp_path / "localhost.pem"
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    process = await asyncio.create_subprocess_exec(
        *("openssl", *arguments.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", pem, "-out", "-"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    text, _ = await process.communicate()
    with pem.open("ab") as file:
        file.write(text)
    return pem


async def test_certificates_are_verified(opened: Opened, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    stream = chat_event("hi") + chat_event(finish="stop", usage=(1, 1)) + DONE

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head() + stream)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "localhost", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        async with opened(url, "m", lazy=True) as engine:
            with pytest.raises(EngineError, match="secure connection"):
                await answer_of(engine)
        async with opened(url, "m", lazy=True, ca_file=certificate) as engine:
            assert (await answer_of(engine))[-1].text.endswith("hi")


async def test_a_certificate_file_that_is_none_is_said(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="ca_file"):
        async with opened("https://localhost:9/v1", "m", lazy=True, ca_file=tmp_path / "none.pem"):
            pass


async def test_https_goes_through_a_tunnel(opened: Opened) -> None:
    """As far as a proxy that refuses tells."""
    lines = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 No\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with proxy:
        url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        async with opened("https://models.example/v1", "m", lazy=True, proxy=url) as engine:
            with pytest.raises(EngineError, match="proxy"):
                await answer_of(engine)

    assert lines[0].startswith(b"CONNECT models.example:443 HTTP/1.1\r\n")
