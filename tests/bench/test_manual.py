"""The manual's page on the benchmark says what there is."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

import pytest

from tests.bench import gateway, split
from tests.bench.__main__ import SUBJECTS, main
from tests.bench.harness import ENVIRONMENTS, GATEWAYS, PEERS

PAGE = files("fastchat_serve").joinpath("docs/bench.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_subject_workload_and_server_has_its_row() -> None:
    rows = {
        name
        for line in PAGE.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    }

    workloads = {workload.name for workload in (*gateway.WORKLOADS, *split.WORKLOADS)}
    named = SUBJECTS.keys() | workloads | {peer.name for peer in (*PEERS, *GATEWAYS)}
    assert named <= rows


def test_every_argument_is_documented(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit):
        main()
    offered = set(re.findall(r"--[a-z]+", capsys.readouterr().out.partition("options:")[2])) - {"--help"}

    assert offered == {code.split()[0] for code in CODE if code.startswith("--") and code != "--"}


def test_the_variables_that_name_other_servers_are_documented() -> None:
    assert {variable for _, variable in ENVIRONMENTS.values()} | {"FASTCHAT_BENCH_VLLM_PYTHON"} <= CODE


def test_nox_knows_which_subjects_need_other_servers() -> None:
    tree = ast.parse((Path(__file__).parents[2] / "noxfile.py").read_text())
    said = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("NEEDS_NO_PEER", "OTHER_SERVERS")
    }

    assert said["OTHER_SERVERS"].keys() == {"gateway", "split"}
    assert said["NEEDS_NO_PEER"] == SUBJECTS.keys() - said["OTHER_SERVERS"].keys() | {"--help"}
