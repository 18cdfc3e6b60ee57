"""What names a session in a request: a header, or one of two fields, and which of them comes first."""

from __future__ import annotations

import pytest

from fastchat_serve import GenerateRequest
from tests.conftest import ECHO
from tests.end_to_end.raw import connected, post

pytestmark = pytest.mark.anyio

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "a"}]}
TEXT = {"model": "echo", "prompt": "a"}


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_the_header_goes_before_the_cache_key_and_that_before_the_user(serving, monkeypatch, path, body):
    sessions: list[str] = []
    async with serving(ECHO) as server, connected(server) as connection:
        (worker,) = server.application.workers
        start = worker.start

        def noting(request: GenerateRequest, sink):
            sessions.append(request.session)
            return start(request, sink)

        monkeypatch.setattr(worker, "start", noting)
        named = {"user": "anna", "prompt_cache_key": "essay"}
        with_header = post(path, body | named).replace(b"\r\n", b"\r\nx-session-id: tab 7\r\n", 1)
        for request in (post(path, body), post(path, body | {"user": "anna"}), post(path, body | named), with_header):
            assert (await connection.request(request)).status == 200
    assert sessions == ["", "anna", "essay", "tab 7"]
