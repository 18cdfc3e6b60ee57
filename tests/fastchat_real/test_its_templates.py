"""All of FastChat's templates, as it renders them and as we do."""

from __future__ import annotations

import pytest

from fastchat_serve import Message
from fastchat_serve.fastchat.carried import CARRIER, prompt_from
from fastchat_serve.fastchat.conversation import render
from fastchat_serve.protocol.fastchat import Conversation
from fastchat_serve.requests import ChatPrompt

conversation = pytest.importorskip("fastchat.conversation")

TALKS: list[list[tuple[str, str]]] = [
    [("user", "Hi")],
    [("system", "Be {brief}."), ("user", "Hi\r\n\r\nthere"), ("assistant", " Yo "), ("user", "Q")],
    [("user", ""), ("assistant", "A"), ("user", "Q\n\nR")],
]


@pytest.mark.parametrize("name", sorted(conversation.conv_templates))
@pytest.mark.parametrize("talk", TALKS, ids=["short", "long", "odd"])
def test_every_template_is_rendered_as_fastchat_does(name: str, talk: list[tuple[str, str]]) -> None:
    theirs = conversation.conv_templates[name].copy()
    if theirs.sep_style is None:
        pytest.skip("a template without a style, for foreign APIs")
    stops = theirs.stop_str
    its_own = {
        "sep_style": int(theirs.sep_style),
        "roles": tuple(theirs.roles),
        "messages": tuple(map(tuple, theirs.messages)),
        "stop_str": tuple(stops) if isinstance(stops, list) else stops,
    }
    ours = Conversation(**vars(theirs) | its_own)
    expected = rendered(theirs, talk)

    assert render(ours, [Message(role=role, content=text) for role, text in talk]) == expected


def test_a_conversation_that_fastchat_renders_with_our_template_arrives_as_it_was() -> None:
    fields = {name: getattr(CARRIER, name) for name in ("name", "system_template", "roles", "sep")}
    style = conversation.SeparatorStyle(CARRIER.sep_style)
    for talk in TALKS[:2]:
        theirs = conversation.Conversation(**fields, messages=[], sep_style=style)
        prompt = prompt_from(rendered(theirs, talk))
        assert isinstance(prompt, ChatPrompt)
        assert [(message.role, message.text) for message in prompt.messages] == talk


def rendered(theirs: object, talk: list[tuple[str, str]]) -> str:
    template: object = theirs
    for role, text in talk:
        if role == "system":
            template.set_system_message(text)  # type: ignore[attr-defined]
        else:
            template.append_message(template.roles[role == "assistant"], text)  # type: ignore[attr-defined]
    template.append_message(template.roles[1], None)  # type: ignore[attr-defined]
    prompt: str = template.get_prompt()  # type: ignore[attr-defined]
    return prompt
