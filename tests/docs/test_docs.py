"""The manual and the README say what is there, and what they say can be done."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import anyio
import httpx
import msgspec
import pytest
from msgspec import NODEFAULT, Struct

import fastchat_serve
from fastchat_serve import config, hookspecs
from fastchat_serve.app import Application
from fastchat_serve.cli import main
from fastchat_serve.commands.chat.conversation import Conversation
from fastchat_serve.commands.chat.screen import Screen
from fastchat_serve.commands.chat.session import Session
from fastchat_serve.configfile.load import convert_options, load_config
from fastchat_serve.connection import ConnectionLimits
from fastchat_serve.controller.failover import Moves
from fastchat_serve.controller.policies import POLICIES
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engines.echo import EchoOptions
from fastchat_serve.errors import SHUTTING_DOWN, ServeError
from fastchat_serve.plugins import Plugins
from fastchat_serve.protocol import openai as wire
from fastchat_serve.routes.metrics import Metrics
from fastchat_serve.watchdog import Watchdog
from tests.conftest import ECHO, Serving
from tests.docs.backends_here import REPOSITORY, backends
from tests.docs.capability_table import PAGE as CAPABILITIES
from tests.docs.capability_table import page as capabilities

SOURCES = Path(fastchat_serve.__file__).parent
MANUAL = SOURCES / "docs"
README = REPOSITORY / "README.md"
PAGES = {page.stem: page for page in sorted(MANUAL.glob("*.md"))}
BACKENDS = backends()
PLUGINS = sorted((REPOSITORY / "plugins").glob("fastchat-backend-*"))
DOCUMENTS = [
    README,
    REPOSITORY / "CHANGELOG.md",
    *(folder / "README.md" for folder in PLUGINS),
    *PAGES.values(),
]

TABLES: dict[str, type[Struct]] = {
    "Top level": config.Tables,
    "`[server]`": config.Server,
    "`[controller]`": config.Controller,
    "`[api]`": config.Api,
    "`[cluster]`": config.Cluster,
    "`[[worker]]`": config.Worker,
    "`[worker.timeouts]`": config.Timeouts,
    "`[limits]`": config.Limits,
    "`[fastchat]`": config.FastChat,
}
"""The sections of config.md, and what each is about."""


class Block(Struct, frozen=True):
    """One fenced block. `about`: what its opening line says after the language."""

    file: str
    line: int
    language: str
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def name_of(document: Path) -> str:
    """The README and the pages are known by their names; those of plugins by their folder's as well."""
    return f"{document.parent.name}/{document.name}" if document.parent in PLUGINS else document.name


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all documents in these languages."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for fence in re.finditer(r"^```(\w*) *(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(name_of(document), line, fence[1], fence[2], fence[3]))
    return [block for block in found if block.language in languages]


def sections(page: str, level: int = 2) -> dict[str, str]:
    """The text under each heading of a page."""
    parts = re.split(rf"^{'#' * level} (.+)\n", PAGES[page].read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables in `text`, by the code in their first cell."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            first, *others = (cell.strip() for cell in line.strip("|").split(" | "))
            found[first.strip("`")] = others
    return found


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as the manual writes it."""
    if field.required:
        return "required"
    default = field.default_factory() if field.default is NODEFAULT else field.default
    if default is None:
        return "—"
    if isinstance(default, Struct):
        return "a table"
    if default == ():
        return "`[]`"
    return f"`{msgspec.json.encode(default).decode()}`"


def assert_documents(text: str, table: type[Struct]) -> None:
    """`text` has a row with the right default for every field of `table`, and for nothing else."""
    documented = {key: cells[0] for key, cells in rows(text).items()}
    assert documented == {field.encode_name: default_of(field) for field in msgspec.structs.fields(table)}


# ------------------------------------------------------------------------------------ nothing is missing


def test_every_config_table_is_a_section_of_its_page() -> None:
    structs = {kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Struct)}
    public = {kind for kind in structs if not kind.__name__.startswith("_") and kind.__module__ == config.__name__}

    assert public - {config.Config} == set(TABLES.values())
    assert TABLES.keys() <= sections("config").keys()


@pytest.mark.parametrize("section", TABLES)
def test_every_config_key_is_documented_with_its_default(section: str) -> None:
    assert_documents(sections("config")[section], TABLES[section])


def test_every_limit_of_a_connection_is_documented_with_its_default() -> None:
    assert_documents(sections("security")["Limits of a connection"], ConnectionLimits)


def test_every_echo_option_is_documented_with_its_default() -> None:
    assert_documents(PAGES["echo"].read_text(), EchoOptions)


@pytest.mark.parametrize("name", BACKENDS.keys() - {"echo"})
def test_every_backend_has_a_page_with_every_option_and_its_default(name: str) -> None:
    assert_documents(sections(name)["Options"], BACKENDS[name].options)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_tells_what_its_engines_can_do(name: str) -> None:
    assert BACKENDS[name].capabilities


def test_the_table_of_capabilities_is_that_of_the_code() -> None:
    assert CAPABILITIES.read_text(encoding="utf-8") == capabilities(), "python -m tests.docs.capability_table"


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_every_backend_has_a_readme_with_one_config(folder: Path) -> None:
    shown = re.findall(r"^```toml\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    assert len(shown) == 1


def test_every_quantization_is_documented() -> None:
    names = get_args(sys.modules[BACKENDS["hf"].options.__module__].Quantization)

    assert set(rows(sections("hf")["Quantisation and adapters"])) == set(names)


def test_every_hook_is_a_page_with_its_signature() -> None:
    hooks = [name for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.GROUP}_spec")]

    for hook in hooks:
        kind = getattr(hookspecs, hook).__annotations__["register"]
        page = PAGES[hook].read_text()
        assert page.startswith(f"# {hook}\n")
        assert f"`{hook}(register: {kind}) -> None`" in page
        assert f"({hook}.md)" in PAGES["hooks"].read_text()


def test_every_command_is_on_the_terminal_page_and_in_the_readme(commands: dict[str, str]) -> None:
    documented = {word for heading in sections("terminal") for word in heading.split()}

    assert set(commands) <= documented
    assert set(commands) <= set(re.findall(r"^\| `fastchat-serve (\w+)", README.read_text(), re.MULTILINE))


def test_every_route_is_on_the_api_page() -> None:
    app = Application(load_config(REPOSITORY / "conf/echo.toml", environ={})).asgi
    methods = ("GET ", "POST ", "DELETE ")
    documented = {row.partition(" ")[2] for row in rows(PAGES["api"].read_text()) if row.startswith(methods)}

    assert documented == {route.path_format for route in app.routes}


def test_every_error_code_is_on_the_api_page() -> None:
    pattern = r"^\| (\d+) \| (?:`(\w+)`|null) \| `(\w+)` \|"
    documented = set(re.findall(pattern, sections("api")["Errors"], re.MULTILINE))
    literal = {
        code for source in SOURCES.rglob("*.py") for code in re.findall(r'\bcode="(\w+)"', source.read_text("utf-8"))
    }

    assert {(str(kind.status), kind.code or "", kind.type) for kind in error_kinds()} <= documented
    assert literal | {SHUTTING_DOWN} <= {code for _, code, _ in documented}


def error_kinds(root: type[ServeError] = ServeError) -> Iterator[type[ServeError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from error_kinds(kind)


def test_every_metric_is_on_the_operations_page() -> None:
    metrics = Metrics(Registry(), Watchdog(), Moves()).collectors.collect()
    names = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in metrics}

    assert names == set(rows(sections("operations")["Metrics"]))


def test_every_policy_is_on_the_config_page() -> None:
    assert set(re.findall(r"^- `(\w+)`:", sections("config")["`[controller]`"], re.MULTILINE)) == set(POLICIES)


def test_every_capability_is_on_the_backends_page() -> None:
    table = re.findall(r"^\| (`[A-Z_]{2,}`.*?) \|", sections("backends", 3)["Capabilities"], re.MULTILINE)

    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(fastchat_serve.Capability.__members__)


def test_every_member_of_an_engine_is_on_the_backends_page() -> None:
    (contract,) = (block.text for block in blocks("python") if "class Engine(Protocol)" in block.text)
    members = {name for name in vars(fastchat_serve.Engine) if not name.startswith("_")}

    assert members <= set(re.findall(r"\b(\w+)(?=[:(])", contract))


def test_every_chat_command_is_on_the_terminal_page() -> None:
    session = Session("", "", ask=lambda *_: pytest.fail("nobody asks"), screen=Screen(), conversation=Conversation())
    words = {word for word in session.words if word.startswith("/")}

    assert words == {row.split()[0] for row in rows(sections("terminal")["chat"])}


def test_every_request_field_is_on_the_api_page() -> None:
    page = PAGES["api"].read_text()
    for kind in (wire.ChatCompletionRequest, wire.CompletionRequest, wire.EmbeddingRequest, wire.StructuredOutputs):
        assert [field for field in kind.__struct_fields__ if not re.search(rf"`[^`\n]*\b{field}\b", page)] == []


# ------------------------------------------------------------------------------------------ it holds


def test_the_index_links_every_page() -> None:
    linked = re.findall(r"\(([\w-]+)\.md\)", PAGES["index"].read_text() + PAGES["hooks"].read_text())

    assert set(linked) == PAGES.keys() - {"index"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_page_has_one_title_and_only_links_that_resolve(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link


def slugs(document: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("block", [block for block in blocks("toml") if not block.about], ids=str)
def test_every_config_shown_can_be_loaded(block: Block, tmp_path: Path) -> None:
    (tmp_path / "shown.toml").write_text(block.text)
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)", block.text), "a-value")

    loaded = load_config(tmp_path / "shown.toml", environ=environ)

    for index, worker in enumerate(loaded.worker):
        if worker.backend in BACKENDS:
            convert_options(loaded, index, BACKENDS[worker.backend].options)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.anyio
@pytest.mark.parametrize("block", [block for block in blocks("python") if "OpenAI(" in block.text], ids=str)
async def test_every_client_snippet_runs_as_it_is(block: Block, demo_and_echo: str) -> None:
    code = compile(block.text.replace("http://127.0.0.1:8000", demo_and_echo), str(block), "exec")

    def run() -> None:
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
        names["client"].close()  # a script may leave that to its end; a test's warnings are errors

    await anyio.to_thread.run_sync(run)


@pytest.mark.anyio
@pytest.mark.parametrize("block", [block for block in blocks("sh") if block.text.startswith("curl")], ids=str)
async def test_every_curl_line_gets_an_answer(block: Block, demo_and_echo: str) -> None:
    url, body = re.search(r"http://127.0.0.1:8000(\S+)", block.text), re.search(r"-d '(.*)'", block.text)
    assert url is not None
    assert body is not None
    async with httpx.AsyncClient(base_url=demo_and_echo) as client:
        reply = await client.post(url[1], content=body[1], headers={"content-type": "application/json"})

    assert reply.status_code == 200
    assert "Hello!" in reply.text


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_every_command_line_shown_has_arguments_that_exist(block: Block, commands: dict[str, str]) -> None:
    for line in block.text.splitlines():
        called = re.search(r"(?:^|[|&;] *)fastchat-serve (.+)", line)
        if called is not None:
            arguments = called[1].split()
            command = arguments[0] if arguments[0] in commands else ""
            assert command or arguments[0].startswith("-"), line
            known = commands[command] if command else help_of()
            assert [flag for flag in re.findall(r"--[a-z-]+", line) if flag not in known] == [], line


def test_the_readme_sets_up_with_sessions_that_exist() -> None:
    tree = ast.parse((REPOSITORY / "noxfile.py").read_text())
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    shown = re.findall(r"^python3 -m pip install nox && python3 -m nox -s (\w+)$", README.read_text(), re.MULTILINE)

    assert shown == ["serve", "tests"]
    assert set(shown) <= sessions


def test_the_readme_names_files_that_exist() -> None:
    paths = re.findall(r"`((?:src|plugins|conf)/[\w./-]+)`", README.read_text())

    assert len(paths) >= 5
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == "[Unreleased]"


@pytest.mark.parametrize("block", [block for block in blocks("python") if block.file.startswith("register_")], ids=str)
def test_every_example_of_a_hook_is_a_plugin_that_loads(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = re.search(r'    register\("([\w-]+)"', block.text)
    assert named is not None
    name, module = named[1], f"example_of_{block.file.removesuffix('.md')}"
    (tmp_path / f"{module}.py").write_text(block.text)
    install(tmp_path, "an-example", {name: module}, monkeypatch)
    plugins = Plugins()

    plugins.load([name])

    assert name in {*plugins.backends, *plugins.models, *plugins.policies, *plugins.tool_parsers}


# ------------------------------------------------------------------------------------ the example backend


@pytest.mark.anyio
async def test_the_example_backend_answers_requests(example_backend: str, serving: Serving) -> None:
    (shown,) = (block.text for block in blocks("toml") if f'backend = "{example_backend}"' in block.text)
    async with serving(shown) as server, httpx.AsyncClient(base_url=server.url) as client:
        question = {"model": example_backend, "messages": [{"role": "user", "content": "grüß dich"}]}
        plain = (await client.post("/v1/chat/completions", json=question)).json()
        streamed = (await client.post("/v1/chat/completions", json=question | {"stream": True})).text
        stopped = (await client.post("/v1/chat/completions", json=question | {"stop": ["SS DI", "DX"]})).json()
        prompt = {"model": example_backend, "prompt": ["ab", "c"], "max_tokens": 2}
        completed = (await client.post("/v1/completions", json=prompt)).json()
        too_long = await client.post("/v1/completions", json={"model": example_backend, "prompt": "a" * 5000})
        tools = await client.post("/v1/chat/completions", json=question | {"logit_bias": {"1": 1}})

    assert plain["choices"][0]["message"]["content"] == "GRÜSS DICH!!"
    assert plain["choices"][0]["finish_reason"] == "stop"
    assert plain["usage"]["completion_tokens"] == len("GRÜSS DICH!!")
    assert "".join(re.findall(r'"content":"([^"]+)"', streamed)) == "GRÜSS DICH!!"
    assert stopped["choices"][0]["message"]["content"] == "GRÜ"
    assert [choice["text"] for choice in completed["choices"]] == ["AB", "C!"]
    assert [choice["finish_reason"] for choice in completed["choices"]] == ["length", "length"]
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    assert tools.json()["error"]["code"] == "unsupported"


@pytest.mark.anyio
async def test_the_example_backend_lets_go_when_its_client_leaves(example_backend: str, serving: Serving) -> None:
    slow = ECHO.replace("echo", example_backend) + "\n[worker.options]\ndelay_ms = 10_000"
    question = {"model": example_backend, "messages": [{"role": "user", "content": "a"}]}
    async with serving(slow) as server, httpx.AsyncClient(base_url=server.url) as client:

        async def ask() -> None:
            await client.post("/v1/chat/completions", json=question)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await until_running(client, 1)
                tasks.cancel_scope.cancel()
            await until_running(client, 0)


async def until_running(client: httpx.AsyncClient, count: int) -> None:
    """Return once the only worker has `count` requests. Asks over HTTP, as an operator would; the caller bounds it."""
    while (await client.get("/cluster/workers")).json()["workers"][0]["running"] != count:  # noqa: ASYNC110
        await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_the_backend_of_the_readme_answers(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = (block.text for block in blocks("python") if block.file == "README.md" and "@hookimpl" in block.text)
    (tmp_path / "backend_of_the_readme.py").write_text(shown)
    install(tmp_path, "a-backend", {"hello": "backend_of_the_readme"}, monkeypatch)
    async with serving(ECHO.replace("echo", "hello")) as server, httpx.AsyncClient(base_url=server.url) as client:
        reply = await client.post("/v1/completions", json={"model": "hello", "prompt": "Hi"})

    assert reply.json()["choices"][0]["text"] == "Hello"


@pytest.fixture
def example_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The backend of backends.md, installed for one test; its name."""
    files = {block.about: block.text for block in blocks("toml", "python") if block.file == "backends.md"}
    for path, text in files.items():
        if path.startswith("src/"):
            target = tmp_path / path.removeprefix("src/")
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    points = project["entry-points"][hookspecs.GROUP]
    install(tmp_path, project["name"], points, monkeypatch)
    (name,) = points
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] in points.values()]:
        del sys.modules[module]


def install(folder: Path, distribution: str, points: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modules in `folder` look like an installed distribution with these entry points, for one test."""
    about = folder / f"{distribution.replace('-', '_')}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n")
    lines = (f"{name} = {module}" for name, module in points.items())
    (about / "entry_points.txt").write_text("\n".join([f"[{hookspecs.GROUP}]", *lines]))
    monkeypatch.syspath_prepend(folder)


# -------------------------------------------------------------------------------------------- what is read


@pytest.fixture
async def demo_and_echo(serving: Serving) -> AsyncIterator[str]:
    """The URL of a server that has the models of the manual, played by the echo engine."""
    async with serving(ECHO.replace('["echo"]', '["echo", "demo"]')) as server:
        yield server.url


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    """The help text of every command, by name; with those of its actions, if it has some."""
    names = actions_in(help_of())
    assert "check" in names
    helps = {name: help_of(name) for name in names}
    return {name: shown + "".join(help_of(name, each) for each in actions_in(shown)) for name, shown in helps.items()}


def actions_in(shown: str) -> list[str]:
    """What a help text lists as the word that comes next."""
    return re.findall(r"^    (\w+)(?:  |$)", shown.partition("positional")[2].partition("options:")[0], re.MULTILINE)


def help_of(*command: str) -> str:
    """What ``fastchat-serve COMMAND --help`` prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", "200")
        main([*command, "--help"])
    return shown.getvalue()
