"""Text to tokens and back, as transformers' tokenizer does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from llamacpp_answers import Opened, saying

from fastchat_backend_llamacpp.pieces import MOST_CHARACTERS, pieces
from fastchat_serve import InvalidRequest, TextPrompt

pytestmark = pytest.mark.anyio

TEXTS = (
    "Hello World, what is 12+34?",
    'é Ünïcode 漢字 <tool_call>{"a": 1}</tool_call>\n\n  \'tis <|im_end|>',
    "Zoë ordered crème brûlée 🍮 in 東京, then flew to москву with 한국 friends",
    "def f(x):\n\treturn x ** 2  # the square\r\n",
    "שלום, γειά σου, y ¡adiós!",
    " ",
    "a\0b",
)


async def test_tokens_are_those_of_the_models_own_tokenizer(opened: Opened, weights: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer.from_file(str(weights / "tokenizer.json"))
    async with opened() as engine:
        for text in TEXTS:
            ids = await engine.tokenize(TextPrompt(text))
            assert list(ids) == own.encode(text).ids
            assert await engine.detokenize(ids) == text


async def test_a_long_text_has_the_same_tokens_in_pieces(opened: Opened, weights: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer.from_file(str(weights / "tokenizer.json"))
    text = "\n".join(f"Line {number} of a long, long story (in {number % 7} parts)." for number in range(250))
    assert len(text) > 2 * MOST_CHARACTERS
    async with opened(context_length=8192, kv_cache_tokens=8192) as engine:
        assert list(await engine.tokenize(TextPrompt(text))) == own.encode(text).ids


@pytest.mark.parametrize("pre", ["gpt-4o", "tekken", "deepseek-v3", "bloom"])
async def test_no_text_ends_the_process(opened: Opened, converted: Callable[..., Path], pre: str) -> None:
    """These cut text with C++'s regular expressions, which overflow the stack on such texts in one piece."""
    async with opened(converted(pre=pre), context_length=40_000, kv_cache_tokens=40_000) as engine:
        for part in ("a", " ", "1", "!", "\n", "//\n", "漢", "क्षि"):
            text = part * (40_000 // len(part))
            ids = await engine.tokenize(TextPrompt(text))
            assert await engine.detokenize(ids) == text


def test_pieces_are_the_text_and_break_between_words() -> None:
    text = "some words " * 2000 + "x" * 3 * MOST_CHARACTERS + " end"
    found = list(pieces(text))
    assert "".join(found) == text
    assert max(map(len, found)) <= MOST_CHARACTERS
    assert found[0].endswith(("some", "words"))
    assert found[1].startswith((" some", " words"))


async def test_a_conversation_is_rendered_with_the_template_of_the_file(opened: Opened, weights: Path) -> None:
    async with opened() as engine:
        rendered = await engine.render(saying("Hello!"))
        assert rendered.endswith("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n")
        assert await engine.tokenize(saying("Hello!")) == await engine.tokenize(TextPrompt(rendered))
        assert engine.info.tool_parser == "hermes"


async def test_a_file_can_stand_in_for_the_template(opened: Opened, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ eos_token }}{{ messages[0].content }}{% if shout %}!{% endif %}")
    async with opened(chat_template=template, chat_template_kwargs={"shout": "bool"}) as engine:
        assert await engine.render(saying("Hey")) == "<|im_end|>Hey"
        assert engine.info.tool_parser == ""


async def test_ids_that_are_no_tokens_are_refused(opened: Opened) -> None:
    async with opened() as engine:
        with pytest.raises(InvalidRequest, match="99999"):
            await engine.detokenize((99_999,))
