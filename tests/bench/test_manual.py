"""The manual's page on the benchmark says what there is."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

import pytest

from tests.bench.__main__ import SUBJECTS, main
from tests.bench.gateway import WORKLOADS
from tests.bench.harness import PEERS, SGLANG_PYTHON

PAGE = files("fastchat_serve").joinpath("docs/bench.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_subject_workload_and_server_has_its_row() -> None:
    rows = {
        name
        for line in PAGE.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    }

    named = SUBJECTS.keys() | {workload.name for workload in WORKLOADS} | {peer.name for peer in PEERS}
    assert named <= rows


def test_every_argument_is_documented(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit):
        main()
    offered = set(re.findall(r"--[a-z]+", capsys.readouterr().out.partition("options:")[2])) - {"--help"}

    assert offered == {code.split()[0] for code in CODE if code.startswith("--") and code != "--"}


def test_the_variables_that_name_other_servers_are_documented() -> None:
    assert {SGLANG_PYTHON, "FASTCHAT_BENCH_VLLM_PYTHON"} <= CODE


def test_nox_knows_which_subjects_need_no_other_servers() -> None:
    tree = ast.parse((Path(__file__).parents[2] / "noxfile.py").read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NEEDS_NO_PEER"
    )

    assert ast.literal_eval(value) == SUBJECTS.keys() - {"gateway"} | {"--help"}
