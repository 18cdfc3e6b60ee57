"""The chat itself: take a line, do what it says. Knows neither where answers are made nor where lines come from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from fastchat_serve.commands.chat.conversation import Conversation, Exchange, load
from fastchat_serve.commands.chat.lines import Lines
from fastchat_serve.commands.chat.screen import Screen
from fastchat_serve.commands.chat.streaming import Reply
from fastchat_serve.configfile.decode import nearest
from fastchat_serve.engine import Message
from fastchat_serve.errors import FastchatServeError

__all__ = ["Ask", "Session"]

INTERRUPTED = 130

_COMMAND = re.compile(r"(?:/|!!)([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)

Ask = Callable[[Sequence[Message], Callable[[str], object]], Reply]
"""Has the partner answer messages, and shows the pieces. Raises `FastchatServeError`."""


class CommandFailed(FastchatServeError):
    """A command that cannot be done; the text says why."""


class Command(Struct, frozen=True):
    """What ``/name ARGUMENT`` does. `argument` is empty if it takes none."""

    name: str
    argument: str
    help: str
    do: Callable[[str], None]


class Session:
    """One chat.

    An answer that Ctrl-C stops stays in the conversation as far as it came, marked as stopped: the person has
    read it and may refer to it. If nothing had come, or if the partner failed, the conversation is as before.

    Args:
        model, place: Whom `ask` asks, and where that is, in words.
    """

    def __init__(self, model: str, place: str, ask: Ask, screen: Screen, conversation: Conversation) -> None:
        self._model, self._place, self._ask, self._screen = model, place, ask, screen
        self._conversation = conversation
        self._over = False
        commands = (
            Command("regen", "", "have your last message answered again", self._regenerate),
            Command("remove", "", "forget the last exchange", self._remove),
            Command("reset", "", "forget all exchanges; the system message stays", self._reset),
            Command("system", "TEXT", "set the system message; without TEXT, drop it", self._set_system),
            Command("save", "FILE", "write the conversation to a JSON file", self._save),
            Command("load", "FILE", "go on with a saved conversation, also one that FastChat saved", self._load),
            Command("help", "", "show this list", self._help),
            Command("exit", "", "leave, as Ctrl-D does", self._leave),
        )
        self._commands = {command.name: command for command in commands}

    @property
    def words(self) -> list[str]:
        """Every command as it is typed."""
        return [f"{mark}{name}" for mark in ("/", "!!") for name in self._commands]

    def run(self, lines: Lines) -> int:
        """Chat until the person leaves. Where no person is, the first failure is the end.

        Returns:
            The exit code.
        """
        self._screen.hint(f"Chatting with {self._model} {self._place}.")
        self._screen.hint("/help lists commands, Ctrl-C stops an answer.\n")
        failed = 0
        while not failed and not self._over:
            try:
                if (line := lines()) is None:
                    break
                self._obey(line)
            except FastchatServeError as error:
                self._screen.error(str(error))
                failed = 0 if self._screen.interactive else 1
            except KeyboardInterrupt:
                failed = 0 if self._screen.interactive else INTERRUPTED
        return failed

    def _obey(self, line: str) -> None:
        """Do a command, or have a message answered. A blank before a command makes it a message."""
        match = _COMMAND.fullmatch(line.rstrip())
        if match is None:
            if line.strip():
                self._answer(line.strip(), self._conversation.exchanges)
            return
        name, argument = match[1].lower(), (match[2] or "").strip()
        command = self._commands.get(name)
        if command is None:
            raise CommandFailed(f"There is no command /{name}.{nearest(name, self._commands)} /help lists all.")
        if argument and not command.argument:
            raise CommandFailed(f"/{name} takes no argument.")
        command.do(argument)

    def _answer(self, question: str, before: Sequence[Exchange]) -> None:
        """Have `question` answered after `before`; the conversation then is `before` and this exchange."""
        messages = self._conversation.ask(question, before)
        with self._screen.answer() as show:
            reply = self._ask(messages, show)
        stopped = reply.finish_reason is None
        if reply.text or not stopped:
            self._conversation.exchanges = [*before, Exchange(question, reply.text, stopped)]
        if stopped:
            if not self._screen.interactive:
                raise KeyboardInterrupt
            self._screen.note("Stopped." if reply.text else "Stopped before anything came; your message is forgotten.")
        elif reply.finish_reason == "length":
            self._screen.note("Cut off: the answer reached --max-tokens, or the end of the model's context.")

    # -------------------------------------------------------------------------------------- commands

    def _regenerate(self, _: str) -> None:
        *before, last = self._exchanges()
        self._answer(last.question, before)

    def _remove(self, _: str) -> None:
        last = self._exchanges().pop()
        self._screen.note(f"Forgotten: {_beginning(last.question)}")

    def _reset(self, _: str) -> None:
        self._conversation.exchanges = []
        self._screen.note("A new conversation.")

    def _set_system(self, text: str) -> None:
        self._conversation.system = text or None
        self._screen.note("System message set." if text else "No system message.")

    def _save(self, name: str) -> None:
        path = _file(name)
        self._conversation.save(path, self._model)
        self._screen.note(f"Saved to {path}.")

    def _load(self, name: str) -> None:
        self._conversation = load(_file(name))
        if self._conversation.system is not None:
            self._screen.hint(f"System message: {self._conversation.system}")
        for exchange in self._conversation.exchanges:
            self._screen.exchange(exchange)

    def _help(self, _: str) -> None:
        for command in self._commands.values():
            self._screen.note(f"/{command.name} {command.argument}".ljust(14) + command.help)
        self._screen.note("FastChat's !!name does the same as /name. A blank before / makes it part of a message.")

    def _leave(self, _: str) -> None:
        self._over = True

    def _exchanges(self) -> list[Exchange]:
        if not self._conversation.exchanges:
            raise CommandFailed("Nothing was said yet.")
        return self._conversation.exchanges


def _file(name: str) -> Path:
    """The file a person means by `name`: as with FastChat, one without a suffix is a JSON file."""
    if not name:
        raise CommandFailed("Say which file.")
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # no such user; then it is the name of a file
        path = path.expanduser()
    return path if path.suffix else path.parent / f"{path.name}.json"


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
