"""What users will try first, answered greedily and word for word."""

import json
from collections.abc import Callable

import pytest

Ask = Callable[..., str]


def tool(name: str, **parameters: str) -> dict[str, object]:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


@pytest.mark.parametrize(
    ("hello", "beginning"),
    [
        ("Hello!", "Hello!"),
        ("Guten Tag", "Hallo!"),
        ("Bonjour", "Bonjour"),
        ("Hola", "¡Hola!"),
        ("Ciao!", "Ciao!"),
        ("你好", "你好！"),
        ("こんにちは", "こんにちは！"),
        ("مرحبا", "مرحبا!"),
        ("नमस्ते", "नमस्ते!"),
    ],
)
def test_a_greeting_is_answered_in_its_language(ask: Ask, hello: str, beginning: str) -> None:
    assert ask(hello, most=12).startswith(beginning)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (2, 2), (3, 9), (7, 8), (10, 10), (13, 4), (19, 1)])
def test_sums_up_to_twenty(ask: Ask, a: int, b: int) -> None:
    assert ask(f"What is {a} + {b}?") == f"{a} + {b} = {a + b}."


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is fastchat-serve?", "asyncio"),
        ("Who are you?", "demonstration model"),
        ("Which license does fastchat-serve have?", "Apache-2.0"),
        ("What port does it use?", "8000"),
        ("What is a lease?", "alive"),
        ("Which policies are there?", "shortest_queue"),
        ("How do I drain a worker?", "SIGTERM"),
    ],
)
def test_questions_about_the_server(ask: Ask, question: str, word: str) -> None:
    assert word in ask(question)


def test_a_name_is_remembered(ask: Ask) -> None:
    assert ask("My name is Alice.", "Nice to meet you, Alice!", "What is my name?") == "Your name is Alice."


def test_text_is_repeated(ask: Ask) -> None:
    assert ask("Repeat this: 👩‍🚀🎉 hello 世界") == "👩‍🚀🎉 hello 世界"


def test_a_tool_is_called_with_the_city_from_the_question(ask: Ask) -> None:
    text = ask("What is the weather in Paris?", tools=[tool("get_weather", city="string")])

    call = json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
    assert call == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_what_it_does_not_know_it_says(ask: Ask) -> None:
    assert "small demonstration model" in ask("Who won the football championship in 1998?")


def test_a_long_story_is_long(ask: Ask) -> None:
    assert len(ask("Write a story with more than 300 words.", most=700).split()) > 300
