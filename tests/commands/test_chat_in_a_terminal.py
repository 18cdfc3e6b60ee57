"""``fastchat-serve chat`` as a person sees it."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

PROMPT = "> "
CTRL_D, TAB, UP = "\x04", "\t", "\x1b[A"
LONG = " ".join(f"word{i}" for i in range(100))


def test_talks_over_several_turns_and_leaves_on_ctrl_d(terminal, url, tmp_path):
    chat = terminal("chat", "--url", url, "--model", "echo")
    chat.expect("Chatting with echo at http://")
    chat.expect(PROMPT)
    for message in ("to be or not", "that is the question"):
        chat.type(f"{message}\r")
        chat.expect(f"{message}\r\n")  # as it was typed
        chat.expect(message)  # as it came back
        chat.expect(PROMPT)
    chat.type(f"/save {tmp_path}/talk\r")
    chat.expect("Saved to")
    chat.expect(PROMPT)
    chat.type(CTRL_D)
    assert chat.wait() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["content"] for message in saved["messages"]] == [
        "to be or not",
        "to be or not",
        "that is the question",
        "that is the question",
    ]


def test_shows_an_answer_while_it_comes_and_ctrl_c_stops_it_and_frees_the_slot(terminal, url, workers, tmp_path):
    chat = terminal("chat", "--url", url, "--model", "slow")
    chat.expect(PROMPT)
    chat.type(f"{LONG}\r")
    chat.expect("word99\r\n")
    chat.expect("word0 word1 word2")
    assert workers()["slow"].running == 1
    chat.interrupt("Stopped.")
    chat.expect(PROMPT)
    deadline = time.monotonic() + 10
    while workers()["slow"].running:
        assert time.monotonic() < deadline, "the slot was not freed"
    chat.type("again\r")
    chat.expect("again\r\n")
    chat.expect("again")
    chat.expect(PROMPT)
    chat.type(f"/save {tmp_path}/talk.json\r")
    chat.expect("Saved to")
    chat.expect(PROMPT)
    chat.type(CTRL_D)
    assert chat.wait() == 0
    question, answer, *_ = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert question["content"] == LONG
    assert answer["stopped"] is True
    assert LONG.startswith(answer["content"])
    assert 0 < len(answer["content"]) < len(LONG)


def test_runs_a_model_in_its_own_process_and_stops_its_answers_too(terminal, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[controller]\n[api]\n[[worker]]\nbackend = "echo"\nconcurrency = 1\noptions = {delay_ms = 50}\n')
    chat = terminal("chat", "--config", str(config))
    chat.expect("Chatting with echo in this process")
    chat.expect(PROMPT)
    chat.type(f"{LONG}\r")
    chat.expect("word99\r\n")
    chat.expect("word0 word1")
    chat.interrupt("Stopped.")
    chat.expect(PROMPT)
    chat.type("and now\r")  # the only slot must be free again
    chat.expect("and now\r\n")
    chat.expect("and now")
    chat.expect(PROMPT)
    chat.type("/exit\r")
    assert chat.wait() == 0


def test_ctrl_c_drops_a_line_that_was_begun_and_leaves_at_an_empty_one(terminal, url):
    chat = terminal("chat", "--url", url, "--model", "echo")
    chat.expect(PROMPT)
    chat.type("half a")
    chat.expect("half a")
    chat.interrupt(PROMPT)
    chat.type("whole\r")
    chat.expect("whole\r\n")
    assert "half" not in chat.expect(PROMPT)
    chat.interrupt("\r\n")
    assert chat.wait() == 0


def test_remembers_lines_for_the_next_chat_and_completes_commands(terminal, url, environ):
    first = terminal("chat", "--url", url, "--model", "echo")
    first.expect(PROMPT)
    first.type("do you remember\r")
    first.expect("do you remember\r\n")
    first.expect(PROMPT)
    first.type(f"/exi{TAB}\r")
    assert first.wait() == 0
    history = Path(environ["XDG_STATE_HOME"]) / "fastchat-serve" / "chat_history"
    assert stat.S_IMODE(os.stat(history).st_mode) == 0o600
    second = terminal("chat", "--url", url, "--model", "echo")
    second.expect(PROMPT)
    second.type(UP + UP)
    second.expect("do you remember")


def test_lines_pasted_together_are_one_message(terminal, url):
    chat = terminal("chat", "--url", url, "--model", "echo")
    chat.expect(PROMPT)
    chat.type("\x1b[200~first line\nsecond line\x1b[201~\r")
    chat.expect("second line")
    chat.expect("first line")
    assert "> " not in chat.expect("second line")


def test_an_error_is_shown_and_the_chat_goes_on(terminal, url):
    chat = terminal("chat", "--url", url, "--model", "nobody")
    chat.expect(PROMPT)
    chat.type("hello\r")
    chat.expect("The model 'nobody' does not exist here.")
    chat.expect(PROMPT)
    chat.type("/hepl\r")
    chat.expect('Did you mean "help"?')
    chat.expect(PROMPT)
    chat.type("!!help\r")
    chat.expect("part of a message.")
    chat.expect(PROMPT)
    chat.type(CTRL_D)
    assert chat.wait() == 0


def test_a_model_cannot_drive_the_terminal(terminal, tmp_path):
    config = tmp_path / "config.toml"
    raw = "\x1b]0;gotcha\x07safe \x9b31m".encode().hex()
    config.write_text(f'[controller]\n[api]\n[[worker]]\nbackend = "echo"\noptions = {{raw = "{raw}"}}\n')
    chat = terminal("chat", "--config", str(config))
    chat.expect(PROMPT)
    chat.type("x\r")
    chat.expect("]0;gotchasafe")  # without the escape character it is only text
    chat.expect(PROMPT)


def test_an_answer_that_never_begins_can_be_stopped_and_leaves_no_trace(terminal, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[controller]\n[api]\n[[worker]]\nbackend = "echo"\noptions = {stall_at = 0}\n')
    chat = terminal("chat", "--config", str(config))
    chat.expect(PROMPT)
    chat.type("hello\r")
    chat.expect("⠋")
    chat.interrupt("your message is forgotten.")
    chat.expect(PROMPT)
    chat.type("/regen\r")
    chat.expect("Nothing was said yet.")


def test_rendering_loses_neither_markup_nor_line_ends(terminal, url):
    chat = terminal("chat", "--url", url, "--model", "echo")
    chat.expect(PROMPT)
    text = "<think>\nhm\n</think>\n\nFirst <b>line</b>\nsecond line\n\n```py\nx = 1\n```\n- an **item**"
    chat.type(f"\x1b[200~{text}\x1b[201~\r")
    chat.expect("- an **item**\r\n")
    shown = [line.strip() for line in chat.expect("• an item").splitlines()]
    for line in ("<think>", "hm", "</think>", "First <b>line</b>", "second line", "x = 1"):
        assert line in shown
