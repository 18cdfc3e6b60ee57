"""From a config to an application: what is found wrong before anything opens, and what fails afterwards."""

from __future__ import annotations

import hashlib

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync

from fastchat_serve import CONTRACT, ConfigError
from fastchat_serve.app import Application, create_app
from fastchat_serve.configfile.load import load_config
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.errors import PluginError, StartupError
from fastchat_serve.plugins import Backend, Plugins
from tests.conftest import ECHO
from tests.end_to_end.raw import connected, get, post
from tests.end_to_end.waiting import until

in_loop = pytest.mark.anyio


@pytest.fixture
def read(tmp_path):
    """A config from TOML text."""

    def read(toml: str):
        path = tmp_path / "config.toml"
        path.write_text(toml)
        return load_config(path, overrides=[], environ={})

    return read


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (ECHO.replace('"echo"\nnames', '"ecko"\nnames'), r"config\.toml:5:11: worker\.0\.backend.*Did you mean 'echo'"),
        (ECHO + "[worker.options]\nsplit = 'letter'\n", r"config\.toml:8:.*worker\.0\.options\.split"),
        (ECHO + "[worker.options]\ndelay = 1\n", r"config\.toml:8:.*worker\.0\.options\.delay"),
        (ECHO + 'tool_parser = "none"\n', r"config\.toml:7:.*worker\.0\.tool_parser.*known are"),
        (ECHO.replace("[controller]", '[controller]\npolicy = "best"'), r"config\.toml:3:.*policy.*shortest_queue"),
        (
            ECHO.replace("[controller]", '[controller.policies]\necho = "best"'),
            r"config\.toml:3:.*controller\.policies\.echo.*shortest_queue",
        ),
    ],
)
def test_a_config_that_names_what_is_not_there_is_refused_with_its_place(read, toml, says):
    """G11."""
    with pytest.raises(ConfigError, match=says):
        Application(read(toml))


def test_a_plugin_that_is_not_installed_is_refused(read):
    with pytest.raises(PluginError, match="'nowhere'"):
        Application(read('plugins = ["nowhere"]\n' + ECHO))


def test_an_engine_that_lacks_what_the_contract_wants_is_refused(read):
    class Half:
        def current_load(self) -> None: ...

    plugins = Plugins()
    plugins.backends["echo"] = Backend("echo", lambda setup: Half(), EchoOptions, CONTRACT)
    with pytest.raises(ConfigError, match=r"worker\.0\.backend.*lacks __aenter__.*fatal_error.*generate_stream"):
        Application(read(ECHO), plugins)


class Late(EchoEngine):
    """Knows itself only once it is open, as most engines do."""

    def __init__(self):
        super().__init__()
        self._known = self.__dict__.pop("info")

    async def __aenter__(self):
        self.info = self._known
        return self


class Nameless(Late):
    """Never says what it is."""

    async def __aenter__(self):
        return self


class Unreturned(EchoEngine):
    """`__aenter__` lacks its ``return self``."""

    async def __aenter__(self): ...


async def backed_by(engine):
    """Installed plugins, with `engine` for the backend ``echo``."""
    plugins = await run_sync(Plugins)
    plugins.backends["echo"] = Backend("echo", lambda setup: engine, EchoOptions, CONTRACT)
    return plugins


@in_loop
async def test_an_engine_may_wait_until_it_is_open_to_say_what_it_is(serving):
    async with serving(ECHO, await backed_by(Late())) as server, connected(server) as connection:
        assert (await connection.request(post("/v1/completions", {"model": "echo", "prompt": "x"}))).status == 200


@in_loop
@pytest.mark.parametrize("kind", [Nameless, Unreturned])
async def test_an_engine_that_is_open_and_does_not_say_what_it_is_is_refused(read, kind):
    plugins = await backed_by(kind())
    application = await run_sync(lambda: Application(read(ECHO), plugins))
    with pytest.raises(ExceptionGroup) as raised:
        async with application.asgi.lifespan():
            pytest.fail("it cannot serve")
    assert raised.group_contains(StartupError, match=r"could not start.*info")


def test_other_servers_get_no_roles_that_are_split(read):
    toml = ECHO.replace("[controller]", '[cluster]\ntoken = "t"').replace(
        "[api]", '[api]\ncontrollers = ["http://10.0.0.1:80"]'
    )
    with pytest.raises(StartupError, match="ASGI"):
        create_app(read(toml + 'controllers = ["http://10.0.0.1:80"]\n'))


def test_building_an_application_opens_nothing(read):
    """So that ``check`` can build one."""
    application = Application(read(ECHO))

    assert [worker.state.value for worker in application.workers] == ["loading"]
    assert application.registry.workers == ()


@in_loop
async def test_the_asgi_app_runs_under_other_servers_too(read):
    """Here: none at all, httpx calls it."""
    app = await run_sync(lambda: create_app(read("[server]\nallowed_hosts = ['*']\n" + ECHO)))
    async with app.lifespan(), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:
        said = {"model": "echo", "messages": [{"role": "user", "content": "to be or not"}]}
        plain = await client.post("/v1/chat/completions", json=said)
        stream = await client.post("/v1/chat/completions", json=said | {"stream": True})

    assert plain.json()["choices"][0]["message"]["content"] == "to be or not"
    assert stream.text.endswith("data: [DONE]\n\n")


@in_loop
async def test_workers_of_one_name_share_its_requests(serving):
    """Each of two busy workers has its part; together they have all slots."""
    toml = (
        "[controller]\n[api]\n"
        + 2 * '[[worker]]\nbackend = "echo"\nconcurrency = 1\noptions = {loop = true, delay_ms = 5}\n'
    )
    async with serving(toml) as server, connected(server) as connection:
        connection.send(post("/v1/completions", {"model": "echo", "prompt": "x", "n": 2, "max_tokens": 10**4}))
        await until(lambda: [worker.load().running for worker in server.application.workers] == [1, 1])
        connection.reset()


class Breaking(EchoEngine):
    """Breaks off while it serves, as an engine does whose device is gone."""

    async def __aenter__(self):

        self.broken = anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._break)
        return self

    async def _break(self):
        await self.broken.wait()
        raise RuntimeError("the device is gone, key sk-secret")

    async def __aexit__(self, *exc_info):
        await super().__aexit__(*exc_info)
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(*exc_info)


@pytest.fixture
def breaking():
    return Breaking(EchoOptions(loop=True, delay_ms=2))


@pytest.fixture
def plugins(breaking):
    plugins = Plugins()
    plugins.load(["echo"])
    plugins.backends["breaking"] = Backend("breaking", lambda _: breaking, EchoOptions, CONTRACT)
    return plugins


@pytest.mark.usefixtures("no_restarts")
@in_loop
async def test_a_worker_that_breaks_takes_down_its_own_requests_only(serving, plugins, breaking):
    """G13: its streams end with an error, the process and the other worker go on."""
    toml = ECHO + '[[worker]]\nbackend = "breaking"\nnames = ["breaking"]\n'
    async with serving(toml, plugins) as server, connected(server) as victim, connected(server) as other:
        victim.send(post("/v1/completions", {"model": "breaking", "prompt": "x", "stream": True, "max_tokens": 10**4}))
        await victim.head()
        breaking.broken.set()
        parts = []
        while part := await victim.piece():
            parts.append(part)
        served = await other.request(post("/v1/completions", {"model": "echo", "prompt": "x"}))
        ready = await other.request(get("/ready"))

    assert b'"error"' in parts[-1]
    assert b"sk-secret" not in b"".join(parts)
    assert served.status == 200
    assert (ready.status, ready.json()["models"]["breaking"]) == (503, ["failed"])


def test_hashed_keys_come_out_as_they_went_in(read):
    digest = hashlib.sha256(b"sk-1").hexdigest()
    config = read(ECHO.replace("[api]", f'[api]\nkeys = ["sha256:{digest}"]'))

    assert [key.reveal() for key in config.api.keys] == [f"sha256:{digest}"]
    assert digest not in repr(config)
