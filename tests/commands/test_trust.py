"""Commands and TLS: which authorities they believe, and what they say where that does not fit (F22)."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

MODELS = b'{"data": [{"id": "demo", "object": "model", "created": 0, "owned_by": "us"}]}'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(MODELS)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A handshake that fails is what the tests are about."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of its certificate."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def serve_as(authority: trustme.CA) -> Iterator[Callable[[str], str]]:
    """``serve_as(name)``: the address of a server on this machine with a certificate for `name`."""
    servers: list[Server] = []

    def start(name: str) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        server = Server(("127.0.0.1", 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"https://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def secure(serve_as: Callable[[str], str]) -> str:
    return serve_as("127.0.0.1")


def test_an_authority_is_named_by_an_argument(run, secure, ca):
    done = run("models", "--url", secure, "--ca", ca)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_an_authority_is_named_by_the_environment_for_this_machine_too(run, secure, ca, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", ca)
    assert "demo" in run("models", "--url", secure).stdout


def test_no_proxy_is_on_the_way_to_this_machine(run, secure, ca, monkeypatch):
    for name in ("https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert "demo" in run("models", "--url", secure, "--ca", ca).stdout


@pytest.mark.parametrize(
    "command", [("models",), ("workers",), ("explain", "x"), ("drain", "x"), ("models", "load", "x")]
)
def test_without_it_the_remedy_is_named(run, secure, command):
    done = run(*command, "--url", secure)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"fastchat-serve: The certificate of {secure} is not believed: ")
    assert done.stderr.endswith("name that with --ca FILE or in SSL_CERT_FILE.\n")


def test_a_certificate_of_another_host_is_not_mended_by_an_authority(run, serve_as, ca):
    done = run("models", "--url", serve_as("elsewhere.example"), "--ca", ca)
    assert done.returncode == 1
    assert "is not believed" in done.stderr
    assert "--ca" not in done.stderr


def test_an_address_without_tls_for_a_server_that_has_it_is_hinted_at(run, secure):
    done = run("models", "--url", secure.replace("https", "http"))
    assert done.returncode == 1
    assert done.stderr.endswith("If it speaks TLS, its address begins with https://.\n")


def test_an_address_with_tls_for_a_server_that_has_none_is_hinted_at(run, url):
    done = run("models", "--url", url.replace("http", "https"))
    assert done.returncode == 1
    assert done.stderr.endswith("its address begins with http://.\n")


@pytest.mark.parametrize(("content", "problem"), [(None, "No such file"), ("", "no file of certificates")])
def test_a_file_that_is_no_authority_is_one_clear_line(run, secure, tmp_path: Path, monkeypatch, content, problem):
    path = tmp_path / "mine.pem"
    if content is not None:
        path.write_text(content)
    given = run("models", "--url", secure, "--ca", str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    found = run("models", "--url", secure)
    for done, named in ((given, "--ca "), (found, "SSL_CERT_FILE=")):
        assert done.returncode == 2
        assert done.stderr.startswith(f"fastchat-serve: {named}{path}: ")
        assert problem in done.stderr
        assert done.stderr.count("\n") == 1


def test_it_may_stand_before_an_action_or_after_it(run, secure, ca):
    for arguments in (("--ca", ca, "unload", "x"), ("unload", "x", "--ca", ca)):
        done = run("models", "--url", secure, *arguments)
        assert "is not believed" not in done.stderr
