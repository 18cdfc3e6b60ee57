"""Conversations through FastChat's front ends and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve import ChatPrompt, Message, TextPrompt
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.fastchat.carried import CARRIER, PLAIN, prompt_from
from fastchat_serve.fastchat.conversation import render

Turns = list[tuple[str, str]]


def there_and_back(turns: Turns) -> Turns:
    prompt = prompt_from(render(CARRIER, [Message(role=role, content=text) for role, text in turns]))
    assert isinstance(prompt, ChatPrompt)
    return [(message.role, message.text) for message in prompt.messages]


TEXT = st.text().filter(lambda text: "\x1e" not in text)


@given(st.text(min_size=1).filter(lambda text: "\x1e" not in text) | st.none(), st.lists(TEXT, min_size=1, max_size=5))
def test_a_conversation_arrives_as_it_was(system: str | None, texts: list[str]) -> None:
    roles = ("user", "assistant")
    turns = [("system", system)] if system is not None else []
    turns += [(roles[number % 2], text) for number, text in enumerate(texts)]
    if turns[-1] == ("assistant", ""):
        turns.append(("user", "?"))

    assert there_and_back(turns) == turns


@given(st.text())
def test_marks_in_a_message_lose_no_text(text: str) -> None:
    """They may be taken for turns: FastChat's templates can be forged in the same way."""
    carried = there_and_back([("user", f"a{text}\x1e{text}b")])

    assert all(word in "".join(part for _, part in carried) for word in (text.split("\x1e")))


@pytest.mark.parametrize("text", ["", "USER: Hi ASSISTANT:", "a\x1euser\x1eb"])
def test_any_other_prompt_is_a_text(text: str) -> None:
    assert prompt_from(text) == TextPrompt(text)


def test_a_conversation_without_messages_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no messages"):
        prompt_from(render(CARRIER, []))


def test_a_model_without_a_template_gets_a_plain_text() -> None:
    assert prompt_from(render(PLAIN, [Message(role="user", content="Hi")])) == TextPrompt("\nUser: Hi\nAssistant:")
