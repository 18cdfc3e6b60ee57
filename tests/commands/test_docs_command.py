"""``fastchat-serve docs``."""

from __future__ import annotations

import pytest

from fastchat_serve.cli import main


@pytest.fixture(autouse=True)
def manual(tmp_path, monkeypatch):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "config.md").write_text("Preface.\n\n# The *config*\n\nAll keys.\n")
    (folder / "index.md").write_text("# The manual\n\nBegin here: ümlaut.\n", encoding="utf-8")
    (folder / "notes.txt").write_text("no page")
    monkeypatch.setattr("fastchat_serve.commands.docs.files", lambda package: {"fastchat_serve": tmp_path}[package])


def test_without_a_topic_pages_are_listed_with_their_titles_the_index_first(capsys):
    assert main(["docs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in map(str.rstrip, lines)] == [
        ["index", "The manual"],
        ["config", "The *config*"],
    ]


@pytest.mark.parametrize("topic", ["index", "INDEX", "index.md"])
def test_in_a_pipe_a_page_is_printed_as_it_is(capsys, topic):
    assert main(["docs", topic]) == 0
    assert capsys.readouterr().out == "# The manual\n\nBegin here: ümlaut.\n"


def test_in_a_terminal_a_page_is_rendered(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["docs", "config"]) == 0
    shown = capsys.readouterr().out
    assert "The" in shown
    assert "*config*" not in shown


@pytest.mark.parametrize("topic", ["confg", "../config", "notes", ""])
def test_an_unknown_topic_is_refused_with_the_pages_there_are(capsys, topic):
    assert main(["docs", topic]) == 2
    complaint = capsys.readouterr().err
    assert f'no page "{topic}"' in complaint
    assert "Pages: index, config." in complaint
    assert ('Did you mean "config"?' in complaint) == (topic in ("confg", "../config"))
