"""``fastchat-serve simulate``."""

from __future__ import annotations

import pytest

from fastchat_serve.controller.policies import POLICIES

PLAN = """
[[fleet]]
names = ["m"]
count = 3
mtbf_s = 5.0
repair_s = 1.0
[synthetic]
requests = 300
rate = 100
prompt_tokens = 50
output_tokens = 20
sessions = 10
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(PLAN)
    return path


def test_it_compares_all_policies_and_draws_a_picture(run, plan, tmp_path):
    done = run("simulate", "--config", str(plan), "--picture", str(tmp_path / "p.svg"))
    assert done.returncode == 0
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["policy", *POLICIES]
    (done_row,) = (row.split() for row in rows if row.startswith("done "))
    assert len(done_row) == 1 + len(POLICIES)
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_one_seed_is_one_output_byte_for_byte(run, plan, monkeypatch):
    outputs = set()
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        outputs.add(run("simulate", "--config", str(plan)).stdout)
    assert len(outputs) == 1
    assert run("simulate", "--config", str(plan), "--set", "seed=1").stdout not in outputs


def test_a_trace_is_replayed_with_the_policies_that_are_named(run, plan, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at_s": 0, "prompt_tokens": 9, "output_tokens": 5}\n' * 7)
    done = run("simulate", "--config", str(plan), "--trace", str(trace), "--set", 'policies=["prefix"]')
    assert done.returncode == 0
    rows = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["policy"] == "prefix"
    assert rows["done"] == "7"


def test_all_policies_fit_into_a_terminal_of_120_columns(terminal, plan):
    shown = terminal("simulate", "--config", str(plan), columns=120)
    assert shown.wait() == 0
    lines = shown.seen.splitlines()
    (heading,) = (line for line in lines if "policy" in line)
    assert all(policy in heading for policy in POLICIES)
    assert all(any(measure in line for line in lines) for measure in ("first token p99, s", "load by worker"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "fleet.0.cuont=3"], 'Did you mean "count"'),
        (["--set", 'policies=["best"]'], "policies.0: there is no policy 'best'; known are: least_work"),
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl: cannot read this trace: No such file"),
        (["--trace", "empty.jsonl"], "empty.jsonl: there is no request in this trace"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, plan, arguments, said, tmp_path, monkeypatch):
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    done = run("simulate", "--config", str(plan), *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_picture_that_cannot_be_written_is_said_so_before_anything_is_simulated(run, plan, tmp_path):
    picture = tmp_path / "p.svg"
    done = run("simulate", "--config", str(plan), "--picture", "no/such/folder.svg", "--trace", "nowhere.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fastchat-serve: no/such/folder.svg: cannot write this file: No such file or directory\n"

    picture.write_text("an earlier one")
    run("simulate", "--config", str(plan), "--picture", str(picture), "--trace", "nowhere.jsonl")
    assert picture.read_text() == "an earlier one"
