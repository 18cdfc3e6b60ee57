"""The conformance kit: green on what keeps the contract, and every planted fault is caught by name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from fastchat_serve import Capability
from fastchat_serve.testing.plugin import TOPICS
from fastchat_serve.testing.report import Report
from fastchat_serve.testing.test_refusals import NEEDING
from tests.testing.broken_engines import FAULTS
from tests.testing.checks_table import PAGE, checks, modules, with_table
from tests.testing.runs import HURRIED, kit, pytest_in, read, run_faults

pytestmark = pytest.mark.timeout(600)  # some faults are only noticed by waiting

NOBODY_CAN_ASK = {
    Capability.EMBED,
    Capability.TOKENIZE,
    Capability.RENDER,
    Capability.TOKEN_IDS,
    Capability.SEED,
    Capability.TOOL_CALLS,
}
"""Capabilities that no `GenerateRequest` needs."""


# --------------------------------------------------------------------------------- engines that are well


def names(report: Report, outcome: str) -> set[str]:
    return {check.name for check in report.checks if check.outcome == outcome}


def run(folder: Path, *arguments: str, topics: tuple[str, ...] = ()) -> Report:
    report = folder / "report.json"
    done = kit(folder, "--report", str(report), *arguments, topics=topics)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(report)


def test_an_engine_that_has_everything_passes_everything(tmp_path: Path) -> None:
    report = run(tmp_path, "--backend", "broken")

    assert names(report, "failed") == set()
    may_be_too_quick = {"deadlines.are_kept_by_the_worker"}
    assert {name for name in names(report, "skipped") - may_be_too_quick if not name.startswith("refusals.")} == set()
    assert {check.name for check in report.checks} == {
        f"{topic}.{name}" for topic, module in modules().items() for name in checks(module)
    }


@pytest.mark.parametrize(
    "options", [(), ("split=byte",), ("split=character", "context_length=3000"), ("delay_ms=0.5", "prefix=Well:")]
)
def test_echo_passes(tmp_path: Path, options: tuple[str, ...]) -> None:
    report = run(tmp_path, "--backend", "echo", *(part for each in options for part in ("--backend-option", each)))

    assert names(report, "failed") == set()
    assert names(report, "passed") >= {"stops.across_chunks", "resume.greedy_at_every_cut", "death.ends_all_streams"}


def test_text_may_be_cut_anywhere(tmp_path: Path) -> None:
    cuts = f"cuts={[*range(1, 60, 3), *range(60, 400, 7)]}"
    topics = ("streams", "finish", "stops", "characters", "resume", "cancel", "concurrency")

    report = run(tmp_path, "--backend", "echo", "--backend-option", cuts, topics=topics)

    assert names(report, "failed") == set()


# ------------------------------------------------------------------------------------ engines that are not


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    run_faults(folder, list(FAULTS))
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_its_check(reports: Path, fault: str) -> None:
    report = read(reports / f"{fault}.json")

    assert names(report, "failed") == {FAULTS[fault].caught_by}


def test_every_topic_catches_something() -> None:
    the_servers_own = {"refusals"}

    assert {fault.topic for fault in FAULTS.values()} == set(TOPICS) - the_servers_own


def test_inexact_engines_have_their_differences_noted(tmp_path: Path) -> None:
    options = ("--backend", "broken", "--backend-option", "fault=mixes_answers_up", *HURRIED)

    report = run(tmp_path, *options, "--inexact", topics=("concurrency",))

    (check,) = (check for check in report.checks if check.name == "concurrency.each_as_if_alone")
    assert check.outcome == "passed"
    assert "is another" in check.measured
    assert not report.exact


# ------------------------------------------------------------------------------------------ the report


def test_the_report_says_who_and_what(tmp_path: Path) -> None:
    report = run(tmp_path, "--backend", "echo", "--model", "anything", topics=("opening",))

    assert (report.backend, report.model, report.contract) == ("echo", "anything", 1)
    assert report.origin.startswith("fastchat-serve ")
    assert "generate" in report.capabilities
    assert report.context_length == 131072
    (opens, *_) = report.checks
    assert (opens.name, opens.outcome) == ("opening.opens", "passed")
    assert re.fullmatch(r"\d+\.\d\d s", opens.measured)


def test_the_terminal_shows_a_row_per_check(tmp_path: Path) -> None:
    done = kit(tmp_path, "--backend", "broken", "--backend-option", "fault=does_not_open", topics=("opening",))

    assert done.returncode == 1
    assert "Conformance of broken (broken 1.0), contract 1: 0 passed, 1 failed" in done.stdout
    assert re.search(r"opening\.opens +failed +.*The model is not there", done.stdout)
    assert re.search(r"opening\.info_is_valid +skipped +the engine is not open", done.stdout)


# --------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Say which backend is to be proved"),
        (("--backend", "ecko"), "Did you mean 'echo'?"),
        (("--backend", "echo", "--backend-option", "splitt=byte"), 'Did you mean "split"?'),
        (("--backend", "echo", "--backend-option", "delay_ms=never"), "delay_ms"),
        (("--backend", "echo", "--backend-option", "delay_ms"), "expected KEY=VALUE"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = kit(tmp_path, *arguments)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_other_suites_keep_their_own_options(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--backend')\n")
    (tmp_path / "test_own.py").write_text(
        "def test_own(request): assert request.config.getoption('--backend') == 'mine'\n"
    )

    done = pytest_in(tmp_path, "--backend", "mine")

    assert done.returncode == 0, done.stdout + done.stderr


def test_an_ini_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers --strict-config --import-mode=importlib\nfilterwarnings = error\n"
    )

    report = run(tmp_path, "--backend", "echo", topics=("opening", "streams"))

    assert names(report, "failed") == set()


# ------------------------------------------------------------------------------------ what it is made of


def test_every_module_of_checks_is_a_topic() -> None:
    folder = Path(inspect.getfile(modules()["streams"])).parent

    assert {path.stem for path in folder.glob("test_*.py")} == {f"test_{topic}" for topic in TOPICS}


@pytest.mark.parametrize("topic", TOPICS)
def test_every_check_states_one_guarantee(topic: str) -> None:
    for name, (guarantee, _) in checks(modules()[topic]).items():
        assert guarantee.endswith("."), name


def test_the_manual_has_every_check() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert page == with_table(page), "run: python -m tests.testing.checks_table"


def test_every_capability_that_can_be_asked_for_is_refused_where_it_is_missing() -> None:
    assert set(NEEDING) == set(Capability) - NOBODY_CAN_ASK
