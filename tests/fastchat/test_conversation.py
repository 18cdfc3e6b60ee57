"""Templates of both generations: what FastChat 0.2.36 made of made-up ones of every style (renderings.jsonl)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastchat_serve import Message
from fastchat_serve.errors import EngineError, Unsupported
from fastchat_serve.fastchat.conversation import LATER_STYLES, STYLES, render
from fastchat_serve.protocol.fastchat import Conversation

RECORDED = [json.loads(line) for line in (Path(__file__).parent / "renderings.jsonl").read_text().splitlines()]


def messages_of(turns: list[tuple[str, str]]) -> list[Message]:
    return [Message(role=role, content=text) for role, text in turns]


def a_template(style: str, **more: Any) -> Conversation:
    """Of the later generation."""
    wire = {"sep_style": LATER_STYLES.index(style) + 1, "max_image_size_mb": None, "sep": "|", "sep2": "||"}
    return msgspec.convert({"name": "x", "roles": ("U", "A"), **wire, **more}, Conversation)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["style"])
def test_a_prompt_is_what_fastchat_makes_of_it(recorded: dict[str, Any]) -> None:
    template = msgspec.convert(recorded["conv"], Conversation)

    assert render(template, messages_of(recorded["messages"])) == recorded["prompt"]


def test_every_style_of_the_release_was_recorded() -> None:
    assert {recorded["style"] for recorded in RECORDED} == set(STYLES)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["style"])
def test_later_versions_number_the_same_styles_otherwise(recorded: dict[str, Any]) -> None:
    moved = recorded["conv"] | {"sep_style": LATER_STYLES.index(recorded["style"]) + 1, "max_image_size_mb": None}

    assert render(msgspec.convert(moved, Conversation), messages_of(recorded["messages"])) == recorded["prompt"]


TALK = messages_of([("system", "S"), ("user", "Q "), ("assistant", "R"), ("user", "T")])


@pytest.mark.parametrize(
    ("style", "more", "prompt"),
    [
        (
            "LLAMA3",
            {"system_template": "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>"},
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>U<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>A<|end_header_id|>\n\nR<|eot_id|>"
            "<|start_header_id|>U<|end_header_id|>\n\nT<|eot_id|><|start_header_id|>A<|end_header_id|>\n\n",
        ),
        (
            "GEMMA",
            {},
            "<bos><start_of_turn>U\nQ |<start_of_turn>A\nR|<start_of_turn>U\nT|<start_of_turn>A\n",
        ),
        ("CLLM", {}, "S|U: T|A:"),
        ("DEFAULT", {}, "S\nU: Q \nA: R\nU: T\nA:"),
    ],
)
def test_what_later_versions_added(style: str, more: dict[str, Any], prompt: str) -> None:
    assert render(a_template(style, **more), TALK) == prompt


def test_the_last_system_message_takes_the_place_of_the_templates() -> None:
    turns = messages_of([("user", "Q"), ("system", "first"), ("system", "last")])

    assert render(a_template("ADD_COLON_SINGLE", system_message="its own"), turns) == "last|U: Q|A:"


def test_a_foreign_template_cannot_make_more_of_a_message_than_text() -> None:
    template = a_template("NO_COLON_SINGLE", system_template="{{a}} {system_message!r:>999999999} {system_message}")

    assert render(template, messages_of([("system", "{x}")])) == "{a} {system_message!r:>999999999} {x}A"


def test_a_role_that_fastchat_does_not_know_is_refused() -> None:
    with pytest.raises(Unsupported, match="tool"):
        render(a_template("CHATML"), messages_of([("tool", "42")]))


@pytest.mark.parametrize("number", [0, -1, 24])
def test_a_style_that_there_is_not_is_refused(number: int) -> None:
    with pytest.raises(EngineError, match="style"):
        render(msgspec.structs.replace(a_template("CHATML"), sep_style=number), TALK)
