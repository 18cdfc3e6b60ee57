"""What was said so far, and how it is kept in a file.

A file holds OpenAI's ``messages``, so that any client can go on with it. Files that FastChat's ``!!save``
wrote can be read as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from fastchat_serve.engine import Message
from fastchat_serve.errors import FastchatServeError

__all__ = ["Conversation", "ConversationError", "Exchange", "load"]


Role = Literal["system", "developer", "user", "assistant"]


class ConversationError(FastchatServeError):
    """A file that cannot be read, written, or made sense of."""


class Exchange(Struct, frozen=True):
    """A question and its answer. `stopped`: the person stopped the answer before its end."""

    question: str
    answer: str
    stopped: bool = False


class _Saved(Struct, frozen=True, omit_defaults=True):
    """A message in our files. Servers ignore `stopped`."""

    role: Role
    content: str
    stopped: bool = False


class _File(Struct, frozen=True):
    model: str
    messages: tuple[_Saved, ...]


class _FastChatFile(Struct, frozen=True):
    """``Conversation.dict()`` of FastChat: messages are pairs of role and text, `offset` of them are examples."""

    system_message: str
    roles: Annotated[tuple[str, ...], Meta(min_length=2)]
    messages: tuple[tuple[str, str], ...]
    offset: int = 0


class Conversation(Struct):
    """An optional system message, then exchanges. A question without an answer is never part of it."""

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    def ask(self, question: str, before: Sequence[Exchange]) -> list[Message]:
        """The messages to send so that `question` is answered after the exchanges `before`."""
        return [*self._messages(before), Message(role="user", content=question)]

    def save(self, path: Path, model: str) -> None:
        """Write to `path`, which may hold an earlier conversation but nothing else.

        Raises:
            ConversationError: The file cannot be written, or is something else.
        """
        if path.exists():
            load(path)
        messages = [_Saved("system", self.system)] if self.system is not None else []
        for exchange in self.exchanges:
            messages.append(_Saved("user", exchange.question))
            messages.append(_Saved("assistant", exchange.answer, exchange.stopped))
        text = msgspec.json.format(msgspec.json.encode(_File(model, tuple(messages))), indent=2)
        try:
            path.write_bytes(text + b"\n")
        except OSError as error:
            raise ConversationError(f"Cannot write {path}: {error.strerror}.") from None

    def _messages(self, exchanges: Sequence[Exchange]) -> list[Message]:
        messages = [Message(role="system", content=self.system)] if self.system is not None else []
        for exchange in exchanges:
            messages.append(Message(role="user", content=exchange.question))
            messages.append(Message(role="assistant", content=exchange.answer))
        return messages


def load(path: Path) -> Conversation:
    """The conversation in `path`, written by `Conversation.save` or by FastChat.

    Raises:
        ConversationError: The file cannot be read, or is no conversation in turns.
    """
    try:
        document = msgspec.json.decode(path.read_bytes())
        if isinstance(document, dict) and "roles" in document:
            return _in_turns(_from_fastchat(msgspec.convert(document, _FastChatFile)))
        return _in_turns(msgspec.convert(document, _File).messages)
    except OSError as error:
        raise ConversationError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # msgspec's errors, and bytes that are no text
        raise ConversationError(f"{path} is no saved conversation: {error}.") from None


def _from_fastchat(file: _FastChatFile) -> list[_Saved]:
    """Its messages in our roles, without the template's examples."""
    system = [_Saved("system", file.system_message)] if file.system_message else []
    user = file.roles[0]
    turns = [_Saved("user" if role == user else "assistant", text) for role, text in file.messages[file.offset :]]
    return system + turns


def _in_turns(messages: Sequence[_Saved]) -> Conversation:
    """Raises `ValueError` if user and assistant do not take turns."""
    conversation = Conversation()
    if messages and messages[0].role in ("system", "developer"):
        conversation.system, messages = messages[0].content, messages[1:]
    if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise ValueError("user and assistant must take turns, each question with its answer")
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        conversation.exchanges.append(Exchange(question.content, answer.content, answer.stopped))
    return conversation
