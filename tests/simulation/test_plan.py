"""The file of a simulation is as strict as a server's config: file, line, key, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastchat_serve.errors import ConfigError
from fastchat_serve.simulation.plan import load_plan

FLEET = '[[fleet]]\nnames = ["a", "b"]\n'


def load(tmp_path: Path, text: str, *overrides: str):  # type: ignore[no-untyped-def]
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return load_plan(path, overrides)


def test_a_fleet_is_all_that_is_needed(tmp_path: Path) -> None:
    plan = load(tmp_path, FLEET + '[[fleet]]\nnames = ["c"]\n')
    assert plan.models == ("a", "b", "c")
    assert plan.synthetic.models == ("a", "c")


def test_keys_can_be_overridden(tmp_path: Path) -> None:
    plan = load(tmp_path, FLEET, "fleet.0.count=7", "seed=3", "synthetic.arrivals=bursty")
    assert (plan.fleet[0].count, plan.seed, plan.synthetic.arrivals) == (7, 3, "bursty")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 1\n", r"fleet\.toml.*fleet: missing"),
        (FLEET + "cuont = 3\n", r'fleet\.toml:3:1: fleet\.0\.cuont: unknown key. Did you mean "count"'),
        (FLEET + "count = 0\n", r"fleet\.toml:3:9: fleet\.0\.count: expected"),
        (FLEET + '[synthetic]\nmodels = ["z"]\n', r"fleet\.toml:4:11: synthetic\.models\.0: no worker .* 'z'"),
        (FLEET + '[synthetic]\narrivals = "bursti"\n', r'fleet\.toml:4:12: .*Did you mean "bursty"'),
        (FLEET + "kill_at_s = [inf]\n", r"fleet\.toml:3:13: fleet\.0\.kill_at_s: these are times"),
        (FLEET + "rate = \n", r"fleet\.toml:3:.*not TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(tmp_path, text)
