"""TLS between the roles, and for clients: who has the right certificate is served, and who has not is told so (F22)."""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import openai
import pytest
import trustme

from tests.cluster import api, controller, worker
from tests.conftest import ECHO
from tests.end_to_end.waiting import until
from tests.test_cluster import JOIN_S, serves

pytestmark = pytest.mark.anyio

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


class Authority:
    """Issues certificates, and says how configs use them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ca = folder, trustme.CA()
        self.path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def server(self, name: str = "127.0.0.1", *, expired: bool = False) -> str:
        """``[server]`` with a certificate for `name`."""
        issued = self._ca.issue_cert(name, not_after=YESTERDAY if expired else None)
        certificate, key = self._folder / f"{name}{expired}.pem", self._folder / f"{name}{expired}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return f'[server]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n'

    def trusting(self, config: str) -> str:
        """`config`, which believes this authority and asks peers for certificates of it."""
        return config.replace("[cluster]\n", f'[cluster]\ntls_ca = "{self.path}"\n')

    def context(self) -> ssl.SSLContext:
        """Of a client that believes this authority, and shows nothing."""
        return ssl.create_default_context(cafile=self.path)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("reach", ["in", "out"])
async def test_roles_with_certificates_of_one_authority_serve_clients_that_have_none(serving, ca, reach):
    server = ca.server()
    async with (
        serving(ca.trusting(server + controller())) as there,
        serving(ca.trusting(server + api(there.url))) as front,
        serving(ca.trusting(server + worker(there.url, more=f'reach = "{reach}"'))),
    ):
        assert (there.url[:8], front.url[:8]) == ("https://", "https://")
        await serves(front)
        async with httpx.AsyncClient(verify=ca.context()) as http:
            client = openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", http_client=http)
            stream = await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "to be or not"}], stream=True
            )
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "to be or not"


async def test_a_request_that_is_refused_over_tls_is_told_why(serving, ca):
    async with serving(ca.server() + ECHO) as server:
        host, port = server.url.removeprefix("https://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=ca.context())
        writer.write(b"NO HTTP\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()


class Case(NamedTuple):
    """Something is wrong with a certificate."""

    controller: Callable[[Authority], str]
    worker: Callable[[Authority, str], str]
    """Given the controller's URL."""
    says: str


REFUSED = {
    "the other's has expired": Case(
        lambda ca: ca.trusting(ca.server(expired=True) + controller()),
        lambda ca, url: ca.trusting(ca.server() + worker(url)),
        "the certificate of {url} is not to be trusted: certificate has expired",
    ),
    "the other's is for another name": Case(
        lambda ca: ca.trusting(ca.server("elsewhere.example") + controller()),
        lambda ca, url: ca.trusting(ca.server() + worker(url)),
        "the certificate of {url} is not to be trusted: IP address mismatch",
    ),
    "the other's is of an authority that is not known": Case(
        lambda ca: ca.trusting(ca.server() + controller()),
        lambda ca, url: ca.server() + worker(url),
        "the certificate of {url} is not to be trusted: self-signed certificate in certificate chain",
    ),
    "plain to TLS": Case(
        lambda ca: ca.trusting(ca.server() + controller()),
        lambda ca, url: worker(url.replace("https", "http")),
        "closed the connection without an answer (is it https:// there?)",
    ),
    "TLS to plain": Case(
        lambda ca: controller(),
        lambda ca, url: ca.trusting(ca.server() + worker(url.replace("http", "https"))),
        "is it http:// there?",
    ),
    "its own is missing": Case(
        lambda ca: ca.trusting(ca.server() + controller()),
        lambda ca, url: ca.trusting(worker(url, more='reach = "out"')),
        "{url} refuses: Show a certificate of this cluster",
    ),
    "its own has expired": Case(
        lambda ca: ca.trusting(ca.server() + controller()),
        lambda ca, url: ca.trusting(ca.server(expired=True) + worker(url)),
        "closed the connection without an answer (does it trust the certificate that we show",
    ),
    "its own is for another name": Case(
        lambda ca: ca.trusting(ca.server() + controller()),
        lambda ca, url: ca.trusting(ca.server("elsewhere.example") + worker(url)),
        "was called back in vain: the certificate of https://127.0.0.1",
    ),
    "its own is of an authority that is not known": Case(
        lambda ca: ca.trusting(ca.server() + controller()),
        lambda ca, url: ca.trusting(Authority(ca.path.parent / "other").server() + worker(url)),
        "closed the connection without an answer (does it trust the certificate that we show",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_f22_a_worker_is_not_listed_and_the_reason_is_said_once(serving, ca, caplog, case):
    (ca.path.parent / "other").mkdir()
    wrong = REFUSED[case]
    async with serving(wrong.controller(ca)) as there, serving(wrong.worker(ca, there.url)):
        reason = wrong.says.format(url=there.url)

        def said() -> list[str]:
            """Of other reasons, such as that a busy machine does not answer in time, there may be lines as well."""
            lines = [record.getMessage() for record in caplog.records]
            return [line for line in lines if line.startswith("Not listed at") and reason in line]

        await until(lambda: bool(said()), JOIN_S)
        await asyncio.sleep(1.0)  # it tries again meanwhile
        assert len(said()) == 1
        assert there.application.registry.workers == ()


async def test_f22_who_is_refused_does_not_storm(serving, ca):
    """Nor does it when the other end closes without a word."""
    arrivals = 0

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrivals
        arrivals += 1
        writer.close()

    mute = await asyncio.start_server(close, "127.0.0.1", 0)
    host, port = mute.sockets[0].getsockname()
    async with mute, serving(worker(f"http://{host}:{port}")):
        await asyncio.sleep(3.0)
    assert 2 <= arrivals <= 12
