"""The kit as a pytest plugin: its options, its order, how checks run, and the report at the end.

Checks are coroutine functions that take a `Subject`. They run here, in one loop of ours, so that neither an ini file
nor another plugin is needed, and the engine stays open from one to the next.
"""

from __future__ import annotations

import inspect
import platform
import warnings
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

import fastchat_serve
from fastchat_serve.errors import StartupError

for _helper in ("answers", "subject"):  # they assert, and are not imported yet
    pytest.register_assert_rewrite(f"fastchat_serve.testing.{_helper}")

from fastchat_serve.testing.marks import NEEDS, needs_of  # noqa: E402
from fastchat_serve.testing.report import Check, Report  # noqa: E402
from fastchat_serve.testing.subject import Settings, Subject  # noqa: E402
from fastchat_serve.testing.target import Target  # noqa: E402

__all__ = ["TOPICS"]

TOPICS = (
    "opening",
    "streams",
    "finish",
    "stops",
    "prompts",
    "characters",
    "tokenizer",
    "chat",
    "logprobs",
    "sampling",
    "seeds",
    "resume",
    "constraints",
    "adapters",
    "embeddings",
    "context",
    "bad_input",
    "refusals",
    "deadlines",
    "cancel",
    "concurrency",
    "death",
    "unloading",
)
"""The order of the modules. The last two end the engine."""

_PACKAGE = "fastchat_serve.testing."
_CHECK_LASTS = 5
"""A check may take so many times the wait for one answer."""

_subject = pytest.StashKey[Subject]()
_report = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Settings()
    group = parser.getgroup("fastchat-serve", "conformance of an engine (fastchat_serve.testing)")
    group.addoption("--backend", metavar="NAME", help="the backend to prove, as in a config")
    group.addoption("--model", metavar="ID", default="", help="a registered name, a folder or a hub id, as in a config")
    group.addoption(
        "--backend-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one of [worker.options]: a TOML value or a bare word, as after --set; may be repeated",
    )
    group.addoption("--report", metavar="FILE", type=Path, help="write the report there, as JSON")
    group.addoption(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=default.wait_s,
        help="how long one answer may take (%(default)g)",
    )
    group.addoption(
        "--abort-grace",
        metavar="SECONDS",
        type=float,
        default=default.grace_s,
        help="how long letting go of an aborted request may take (%(default)g, as in the server)",
    )
    group.addoption(
        "--tokens", metavar="N", type=int, default=default.tokens, help="length of the answers (%(default)d tokens)"
    )
    group.addoption(
        "--concurrency", metavar="N", type=int, default=default.concurrency, help="streams at once (%(default)d)"
    )
    group.addoption(
        "--inexact",
        action="store_true",
        help="the engine's arithmetic depends on its batch: note where greedy answers differ, rather than fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS}(*capabilities): run if the engine declares all of these")
    backend, options = config.getoption("--backend"), config.option
    if backend is None:
        if config.option.collectonly or config.option.help:
            return
        raise pytest.UsageError("Say which backend is to be proved: --backend NAME")
    settings = Settings(
        wait_s=options.wait,
        grace_s=options.abort_grace,
        tokens=options.tokens,
        concurrency=options.concurrency,
        exact=not options.inexact,
    )
    try:
        target = Target.find(backend, options.model, options.backend_option)
    except StartupError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[_subject] = Subject(target, settings)
    config.stash[_report] = Report(
        backend=backend,
        origin=target.origin,
        model=options.model,
        fastchat_serve=fastchat_serve.__version__,
        python=platform.python_version(),
        contract=target.backend.contract,
        exact=settings.exact,
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if (subject := config.stash.get(_subject, None)) is not None:
        try:
            subject.finish()
        except Exception as failure:  # the boundary to the engine under test; unloading has checks of its own
            warnings.warn(f"the engine did not close: {failure!r}", stacklevel=1)


# ------------------------------------------------------------------------------------------- checks


def _is_check(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.module.__name__.startswith(_PACKAGE)


def _name(item: pytest.Item) -> str:
    """``streams.text_is_new``."""
    assert isinstance(item, pytest.Function)
    topic = item.module.__name__.removeprefix(f"{_PACKAGE}test_")
    return f"{topic}.{item.originalname.removeprefix('test_')}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Topics in their order; other people's tests, if there are any, before them."""
    items.sort(key=lambda item: TOPICS.index(_name(item).partition(".")[0]) if _is_check(item) else -1)


@pytest.fixture(name="subject")
def subject_fixture(request: pytest.FixtureRequest) -> Subject:
    """The engine under test, open and well; skips the check if the engine does not declare what it needs."""
    subject = request.config.stash[_subject]
    subject.notes.clear()
    try:
        if subject.last_info is None or not _name(request.node).startswith("unloading."):
            subject.run(subject.load())
    except Exception as failure:  # the boundary to the engine under test
        if _name(request.node) == "opening.opens":
            raise
        pytest.skip(f"the engine is not open: {failure}")
    missing = [capability.value for capability in needs_of(request.node) if not subject.can(capability)]
    if missing:
        pytest.skip(f"not declared: {', '.join(missing)}")
    return subject


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a check in the subject's loop, for a bounded time."""
    if not (_is_check(pyfuncitem) and inspect.iscoroutinefunction(pyfuncitem.function)):
        return None
    subject = pyfuncitem.config.stash[_subject]
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.function).parameters}

    async def bounded() -> None:
        with anyio.fail_after(_CHECK_LASTS * subject.settings.wait_s):
            await pyfuncitem.obj(**arguments)
        await subject.idle()

    subject.run(bounded())
    return True


# ------------------------------------------------------------------------------------------- report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """One row per check: what its call said, or its setup if it came no further."""
    report = yield
    if _is_check(item) and (call.when == "call" or not report.passed):
        item.config.stash[_report].checks.append(_row(item, report, call))
    return report


def _row(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> Check:
    assert isinstance(item, pytest.Function)
    subject = item.config.stash[_subject]
    return Check(
        name=_name(item),
        case=item.callspec.id if hasattr(item, "callspec") else "",
        guarantee=(inspect.getdoc(item.function) or "").partition("\n\n")[0].replace("\n", " "),
        capabilities=tuple(needs_of(item)),
        outcome=report.outcome,
        seconds=round(report.duration, 4),
        detail="" if call.excinfo is None else _why(call.excinfo),
        measured="; ".join(subject.notes) if report.when == "call" else "",
    )


def _why(failure: pytest.ExceptionInfo[BaseException]) -> str:
    if failure.errisinstance(pytest.skip.Exception):
        return str(failure.value)
    return failure.exconly(tryshort=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    report = config.stash.get(_report, None)
    if report is None:
        return
    _describe_engine(report, config.stash[_subject])
    if (path := config.getoption("--report")) is not None:
        report.write(path)


def _describe_engine(report: Report, subject: Subject) -> None:
    """What the engine said of itself, if it ever was open."""
    if (info := subject.last_info) is not None:
        report.capabilities = tuple(sorted(info.capabilities))
        report.context_length, report.dtype, report.device = info.context_length, info.dtype, info.device
        report.load_seconds = round(subject.load_s, 3)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash.get(_report, None)
    if report is None or not report.checks:
        return
    screen = terminalreporter
    terminal = screen.isatty
    screen.write_line("")
    screen.write(report.table(width=screen._tw.fullwidth if terminal else None, color=screen.hasmarkup))
