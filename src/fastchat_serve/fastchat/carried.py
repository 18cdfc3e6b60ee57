"""Conversations that arrive as one text: what FastChat's front ends make of the template that our workers send.

Its front ends render conversations themselves, with a template that they ask the worker for. Ours have the model's own
chat template, which FastChat's form cannot express. So they send one that only marks the turns; and where a prompt
comes back with the marks, the turns are read out of it again, and the model's own template renders them.
"""

from __future__ import annotations

from typing import Final

from fastchat_serve.engine import ChatPrompt, Message, TextPrompt
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.protocol.fastchat import Conversation

__all__ = ["CARRIER", "PLAIN", "prompt_from"]

_MARK: Final = "\x1e"
"""The ASCII control character that separates records."""
_BEGIN = f"{_MARK}fastchat-serve{_MARK}"
_USER, _ASSISTANT = f"{_MARK}user{_MARK}", f"{_MARK}assistant{_MARK}"
_ROLES: Final = frozenset({"user", "assistant"})

_ADD_COLON_SINGLE, _NO_COLON_SINGLE = 1, 4
"""Separator styles whose numbers are the same in all versions."""

CARRIER = Conversation(
    name="fastchat-serve",
    system_template=f"{_BEGIN}{{system_message}}",
    roles=(_USER, _ASSISTANT),
    sep_style=_NO_COLON_SINGLE,
    sep="",
)
"""For models with a chat template."""

PLAIN = Conversation(name="fastchat-serve-plain", roles=("User", "Assistant"), sep_style=_ADD_COLON_SINGLE, sep="\n")
"""For models without one."""


def prompt_from(text: str) -> TextPrompt | ChatPrompt:
    """The conversation that `text` carries, or else the text itself.

    Raises:
        InvalidRequest: It carries a conversation without messages.
    """
    if not text.startswith(_BEGIN):
        return TextPrompt(text)
    # A mark, a role and a mark between any two turns; anything else between marks was written by somebody.
    system, *pieces = text[len(_BEGIN) :].split(_MARK)
    messages = [Message(role="system", content=system)] if system else []
    position = 0
    while position < len(pieces):
        role = pieces[position]
        if role not in _ROLES or position + 1 == len(pieces):
            _extend(messages, _MARK + role)
            position += 1
        else:
            messages.append(Message(role=role, content=pieces[position + 1]))
            position += 2
    if messages and messages[-1].role == "assistant" and not messages[-1].content:
        messages.pop()  # the turn that the model is to write
    if not messages:
        raise InvalidRequest("The conversation has no messages. Give at least one.", param="prompt")
    return ChatPrompt(tuple(messages))


def _extend(messages: list[Message], text: str) -> None:
    """Marks that were in a message itself."""
    if messages:
        last = messages[-1]
        messages[-1] = Message(role=last.role, content=last.text + text)
    else:
        messages.append(Message(role="user", content=text))
