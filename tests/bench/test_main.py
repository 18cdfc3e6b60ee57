"""``python -m tests.bench``: what is printed, what is kept, and that one subject's failure does not cost the others."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from tests.bench import __main__ as bench
from tests.bench.report import Plan, Report, Verdict
from tests.bench.tables import show_report, show_summary

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run(good=..., bad=...)`` measures with these functions as the only subjects."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: str, **subjects: Callable[[Plan], Report]) -> int:
        monkeypatch.setattr(bench, "SUBJECTS", dict.fromkeys(subjects, ""))
        for name, measure in subjects.items():
            module = ModuleType(f"tests.bench.{name}")
            vars(module)["measure"] = measure
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "new/figures.json"), *arguments])
        return bench.main()

    return run


def a_report(plan: Plan) -> Report:
    plan.progress("something")
    return Report(
        tables={"speeds": [{"what": "ours", "rounds": plan.rounds, "per s": math.nan}]},
        verdicts=[Verdict(what="ratio", measured=2.0, bar=1.0)],
    )


def test_a_subject_that_fails_is_told_and_the_others_are_measured(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(plan: Plan) -> Report:
        raise OSError("the disk is full")

    assert run(bad=broken, good=a_report) == 1

    shown = capsys.readouterr().out
    assert "the disk is full" in shown
    assert "bad: Failed" in shown
    assert "good: speeds" in shown
    kept = json.loads((tmp_path / "new/figures.json").read_text())
    assert kept["subjects"]["good"]["tables"]["speeds"] == [{"what": "ours", "rounds": 3, "per s": None}]


def test_only_the_subjects_named_are_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("first", first=a_report, second=a_report) == 0

    shown = capsys.readouterr().out
    assert "first: speeds" in shown
    assert "second" not in shown


@pytest.mark.parametrize(("arguments", "rounds"), [([], 3), (["--rounds", "7"], 7), (["--quick"], 1)])
def test_a_plan_says_how_many_rounds(run: Run, arguments: list[str], rounds: int) -> None:
    plans: list[Plan] = []

    def measure(plan: Plan) -> Report:
        plans.append(plan)
        return a_report(plan)

    run(*arguments, only=measure)

    assert [plan.rounds for plan in plans] == [rounds]


def test_a_subject_that_does_not_exist_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("gatway", gateway=a_report)

    assert "gatway" in capsys.readouterr().err


def shown(show: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict(what="x", measured=0.9, bar=1.0), "MISSED"),
        (Verdict(what="x", measured=1.1, bar=1.0, stretch=2.0), "met"),
        (Verdict(what="x", measured=2.1, bar=1.0, stretch=2.0), "stretch"),
        (Verdict(what="x", measured=1.1, bar=1.0, at_most=True), "MISSED"),
        (Verdict(what="x", measured=0.9, bar=1.0, stretch=0.5, at_most=True), "met"),
        (Verdict(what="x", measured=0.5, bar=1.0, stretch=0.5, at_most=True), "stretch"),
    ],
)
def test_a_figure_is_set_against_its_bar(verdict: Verdict, expected: str) -> None:
    (line,) = (
        line for line in shown(lambda console: show_summary(console, {"it": [verdict]})).splitlines() if " it " in line
    )

    assert line.split("│")[-2].strip() == expected


def test_a_figure_without_a_bar_is_not_judged() -> None:
    table = shown(lambda console: show_summary(console, {"it": [Verdict(what="x", measured=1.0)]}))

    assert not any(word in table.partition("stretch")[2] for word in ("MISSED", "met", "stretch"))


def test_notes_are_shown_as_they_are() -> None:
    assert "it: see [red] and $HOME" in shown(
        lambda console: show_report(console, "it", Report(tables={}, notes=["see [red] and $HOME"]))
    )
