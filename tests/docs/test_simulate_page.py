"""The manual's page on simulation says what there is, and its example can be simulated."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from fastchat_serve.simulation import plan
from fastchat_serve.simulation.plan import load_plan
from fastchat_serve.simulation.trace import Line
from tests.docs.test_docs import assert_documents, blocks, sections

TABLES = {
    "Top level of the fleet's file": plan.Tables,
    "`[[fleet]]`": plan.Fleet,
    "`[goal]`": plan.Goal,
    "`[synthetic]`": plan.Synthetic,
}


@pytest.mark.parametrize("section", TABLES)
def test_every_key_is_documented_with_its_default(section: str) -> None:
    assert_documents(sections("simulate", 3)[section].partition("\n## ")[0], TABLES[section])


def test_every_field_of_a_trace_is_documented() -> None:
    assert_documents(sections("simulate")["The trace"], Line)


def test_what_is_shown_can_be_read(tmp_path: Path) -> None:
    (fleet,) = (block for block in blocks("toml") if block.about == "fleet")
    (line,) = (block for block in blocks("json") if block.file == "simulate.md")
    (tmp_path / "fleet.toml").write_text(fleet.text)

    assert load_plan(tmp_path / "fleet.toml").models == ("chat",)
    assert msgspec.json.decode(line.text, type=Line).prefix == "support"


def test_every_row_is_documented_by_its_name_and_nothing_else() -> None:
    source = Path(plan.__file__).parent.parent / "commands/simulate.py"
    rows = re.findall(r'^ +"([^"]+)": ', source.read_text(), re.MULTILINE)
    table = "".join(re.findall(r"^\| (`.*?) \|", sections("simulate")["What comes out"], re.MULTILINE))
    assert re.findall(r"`([^`]+)`", table) == rows
