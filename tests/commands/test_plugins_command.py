"""``fastchat-serve plugins``."""

from __future__ import annotations

from fastchat_serve.plugins import inspect


def test_no_name_is_broken_where_80_columns_are_all_there_is(terminal):
    shown = terminal("plugins", columns=80)
    shown.wait()
    lines = shown.seen.splitlines()
    for report in inspect():
        assert any(report.name in line and report.distribution in line for line in lines)


def test_other_programs_find_all_of_a_plugin_on_one_line(run):
    (line,) = (line for line in run("plugins").stdout.splitlines() if line.startswith("echo "))
    assert line.split() == ["echo", "fastchat-serve", *line.split()[2:3], "engine", "echo", "(contract", "1)", "ok"]
