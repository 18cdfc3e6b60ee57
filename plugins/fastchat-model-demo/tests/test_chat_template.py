"""The template: what each kind of turn becomes, and that training saw the very same text."""

from random import Random
from typing import Any

from train.chat import render
from train.corpus import conversation
from train.draw import Draw
from transformers import PreTrainedTokenizerFast

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def rendered(tokens: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(tokens.apply_chat_template(messages, tokenize=False, **options))


def test_system_user_and_assistant_turns(tokens: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]

    assert rendered(tokens, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_are_listed_in_the_system_turn(tokens: PreTrainedTokenizerFast) -> None:
    text = rendered(tokens, [{"role": "user", "content": "Hi"}], tools=[WEATHER])

    assert text.startswith('<|im_start|>system\nYou can call these tools:\n<tools>\n{"type": "function"')
    assert text.index('"get_weather"') < text.index("</tools>") < text.index("<|im_end|>")


def test_calls_and_results_take_the_hermes_form(tokens: PreTrainedTokenizerFast) -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}},
        {"id": "2", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'}},
    ]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "2", "content": "rainy"},
    ]

    assert rendered(tokens, messages).endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n</tool_response><|im_end|>\n"
    )


def test_training_saw_what_the_template_writes(tokens: PreTrainedTokenizerFast) -> None:
    draw = Draw(Random(7))

    for _ in range(200):
        chat = conversation(draw)
        text = rendered(tokens, list(chat.messages), tools=list(chat.tools) or None)  # type: ignore[arg-type]
        assert text == "".join(piece.text for piece in render(chat))
