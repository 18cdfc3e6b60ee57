"""The process: socket, signals and drain (G7, F20, F30)."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import pytest

from fastchat_serve.app import Application
from fastchat_serve.config import Server
from fastchat_serve.configfile.load import load_config
from fastchat_serve.errors import StartupError
from fastchat_serve.server import SAME_SIGNAL_S, HttpServer, bind
from tests.end_to_end.process import install_plugin, started
from tests.end_to_end.raw import connected, events, get, post

pytestmark = pytest.mark.anyio

STREAMS = 40


@pytest.fixture
def config(tmp_path):
    """Answers of 150 tokens take a second and a half."""
    path = tmp_path / "config.toml"
    path.write_text(
        '[server]\nport = 0\n[controller]\n[api]\n[[worker]]\nbackend = "echo"\n'
        f"concurrency = {STREAMS // 2}\noptions.delay_ms = 10\n"
    )
    return path


ENDLESS = {"model": "echo", "prompt": "on", "max_tokens": 9999}
LONG = " ".join(map(str, range(150)))
STREAM = post("/v1/completions", {"model": "echo", "prompt": LONG, "max_tokens": 999, "stream": True})


async def stream_through(url: str, began: asyncio.Semaphore) -> list:
    """The events of one stream; releases `began` once the request is on its way."""
    async with connected(url) as connection:
        connection.send(STREAM)
        await connection.writer.drain()
        began.release()
        reply = await connection.reply()
    assert reply.status == 200, reply
    return events(reply.body)


async def streams_under_way(url: str) -> asyncio.Future:
    """Forty streams, half of them waiting for a slot; returns once the server has all of them."""
    began = asyncio.Semaphore(0)
    streams = asyncio.gather(*(stream_through(url, began) for _ in range(STREAMS)))
    async with asyncio.timeout(10):
        for _ in range(STREAMS):
            await began.acquire()
        async with connected(url) as connection:
            while True:
                (worker,) = (await connection.request(get("/cluster/workers"))).json()["workers"]
                if worker["running"] + worker["waiting"] == STREAMS:
                    return streams


async def test_a_first_sigterm_finishes_all_accepted_work_and_takes_no_more(config):
    """G7, F30: nothing is lost, the process is not ready meanwhile, and exits with 0."""
    async with started("--config", config) as server:
        url = await server.url()
        async with connected(url) as connection:
            streams = await streams_under_way(url)
            server.process.send_signal(signal.SIGTERM)
            await server.says("finishing accepted work")
            ready = await connection.request(get("/ready"))
            refused = await connection.request(STREAM)
            finished = await streams
        code = await server.ended()

    assert ready.status == 503
    assert (refused.status, refused.json()["error"]["code"]) == (503, "no_worker")
    assert len(finished) == STREAMS
    for *chunks, done in finished:
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == LONG
    assert code == 0, server.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_every_stream_with_an_error(config, second):
    """F30: at once, but not silently; those that waited for a slot hear of it as a status."""
    config.write_text(config.read_text() + "options.loop = true\n")
    async with started("--config", config) as server:
        url = await server.url()
        async with connected(url) as running, connected(url) as plain:
            running.send(post("/v1/completions", ENDLESS | {"stream": True}))
            await running.head()
            plain.send(post("/v1/completions", ENDLESS))
            server.process.send_signal(signal.SIGTERM)
            await server.says("finishing accepted work")
            server.process.send_signal(second)  # so soon after, a launcher has passed on what we have heard already
            await running.piece()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SAME_SIGNAL_S):
                    await server.says("stopping now")
            server.process.send_signal(second)
            began = time.monotonic()
            parts = []
            while part := await running.piece():
                parts.append(part)
            whole = await plain.reply()
        code = await server.ended()

    *chunks, error = events(b"".join(parts))
    assert chunks
    assert error["error"]["code"] == "shutting_down"
    assert (whole.status, whole.json()["error"]["code"]) == (503, "shutting_down")
    assert time.monotonic() - began < 5
    assert code == 0, server.log


async def test_work_that_is_not_done_within_drain_s_ends_with_an_error(config):
    """G7: the grace has a limit, and at the limit there is an explicit error."""
    config.write_text(config.read_text() + "options.loop = true\n")
    async with started("--config", config, "--set", "server.drain_s=0.2") as server:
        url = await server.url()
        async with connected(url) as connection:
            connection.send(post("/v1/completions", ENDLESS | {"stream": True}))
            await connection.head()
            server.process.send_signal(signal.SIGTERM)
            parts = []
            while part := await connection.piece():
                parts.append(part)
        code = await server.ended()

    assert events(b"".join(parts))[-1]["error"]["code"] == "shutting_down"
    assert code == 0, server.log


async def test_a_client_on_a_slow_line_gets_its_whole_reply_before_the_process_ends(config):
    """G7: the engine is long done, the bytes are not yet with the client."""
    text = "x" * 4_000_000
    async with started("--config", config) as server:
        async with connected(await server.url(), receive_buffer=4096) as slow:
            slow.send(post("/v1/completions", {"model": "echo", "prompt": text}))
            _, headers = await slow.head()
            server.process.send_signal(signal.SIGTERM)
            await server.says("finishing accepted work")
            await asyncio.sleep(2)  # this is the slow line
            body = await slow.reader.readexactly(int(headers["content-length"]))
        assert await server.ended() == 0, server.log

    assert text.encode() in body


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_server_stops_promptly_open_connections_or_not(config, number):
    async with started("--config", config) as server, connected(await server.url()) as connection:
        assert (await connection.request(get("/health"))).status == 200
        began = time.monotonic()
        server.process.send_signal(number)
        assert await connection.closed() == b""
        assert await server.ended() == 0, server.log
    assert time.monotonic() - began < 5
    assert "Traceback" not in server.log


SLOW = """
import anyio
from fastchat_serve import CONTRACT, hookimpl
from fastchat_serve.engines.echo import EchoEngine

class Slow(EchoEngine):
    async def __aenter__(self):
        print("loading", file=__import__("sys").stderr, flush=True)
        await anyio.sleep(600)

@hookimpl
def register_engines(register):
    register("slow", lambda setup: Slow(), contract=CONTRACT)
"""


async def test_a_signal_while_engines_load_ends_the_process(config, tmp_path):
    install_plugin(tmp_path, "slow", SLOW)
    async with started(
        "--config", config, "--set", "worker.0.backend=slow", "--set", "worker.0.options={}", plugins=tmp_path
    ) as server:
        await server.says("loading")
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0, server.log
    assert "while loading" in server.log
    assert "Traceback" not in server.log


async def test_an_engine_that_cannot_load_is_named_and_nothing_is_served(config, tmp_path):
    install_plugin(tmp_path, "slow", SLOW.replace("await anyio.sleep(600)", "raise OSError('the disk is gone')"))
    async with started(
        "--config", config, "--set", "worker.0.backend=slow", "--set", "worker.0.options={}", plugins=tmp_path
    ) as server:
        assert await server.ended() == 2
    assert "backend 'slow'" in server.log
    assert "the disk is gone" in server.log
    assert "Traceback" not in server.log
    assert "Serving" not in server.log


async def test_a_port_in_use_is_said_before_anything_is_loaded(config, tmp_path):
    """F20."""
    install_plugin(tmp_path, "slow", SLOW)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with started(
            "--config",
            config,
            "--set",
            "worker.0.backend=slow",
            "--set",
            "worker.0.options={}",
            "--set",
            f"server.port={port}",
            plugins=tmp_path,
        ) as server:
            assert await server.ended() == 2
    assert f"127.0.0.1:{port}" in server.log
    assert "server.port" in server.log
    assert "loading" not in server.log
    assert "Traceback" not in server.log


@pytest.fixture
def application(config):
    return Application(load_config(config, overrides=[], environ={}))


async def test_of_two_servers_that_load_side_by_side_the_later_says_why_it_stops(application):
    """F20. The kernel lets both bind as long as neither listens."""
    with bind(Server(port=0)) as first:
        later = HttpServer(application, bind(Server(port=first.getsockname()[1])))
        first.listen()
        with pytest.RaisesGroup(pytest.RaisesExc(StartupError, match="cannot listen"), flatten_subgroups=True):
            await later.run()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(StartupError, match=r"192\.0\.2\.1:0"):
        bind(Server(host="192.0.2.1", port=0))


@pytest.mark.parametrize("host", ["a\0b", "\udcff", "a..b", "é..b", "::x", " "])
def test_what_can_be_no_address_is_refused(host):
    """G11."""
    with pytest.raises(StartupError, match=r"server\.port: cannot listen on "):
        bind(Server(host=host, port=0))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
async def test_tokens_leave_without_nagles_delay(host):
    """Else a small write waits for the acknowledgement of the one before: 40 ms a token."""
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()
    try:
        bound = bind(Server(host=host, port=0))
    except StartupError:
        pytest.skip(f"this machine has no {host}")
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=bound)
    async with server:
        _, writer = await asyncio.open_connection(*bound.getsockname()[:2])
        async with asyncio.timeout(5):
            socket_of_client = (served := await accepted).get_extra_info("socket")
        assert socket_of_client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        served.close()
        await writer.wait_closed()
