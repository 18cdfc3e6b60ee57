"""The files in the wheel: complete, small, loadable, and saying the same things."""

import json

import pytest
from train.evaluate import as_markdown
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from fastchat_model_demo import WEIGHTS

FILES = {
    "MODEL_CARD.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "scores.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
TWELVE_MB = 12_000_000


def test_the_package_data_is_complete_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}

    assert set(sizes) == FILES
    assert sum(sizes.values()) <= TWELVE_MB


def test_config_and_tokenizer_agree(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast) -> None:
    assert model.config.vocab_size == len(tokens)
    assert model.config.head_dim in (32, 64)  # what vLLM's CPU attention takes
    assert model.config.max_position_embeddings == 2048
    assert model.generation_config.eos_token_id == [tokens.eos_token_id, tokens.bos_token_id]
    assert (tokens.bos_token, tokens.eos_token, tokens.pad_token) == ("<|endoftext|>", "<|im_end|>", "<|pad|>")


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧‍👦🏳️‍🌈👍🏽",
        "你好，世界！こんにちは 안녕",
        "".join(map(chr, range(1, 0x3000, 7))),
        "  two  spaces , kept .\n\t",
        "\U0010ffff\x00",
    ],
)
def test_any_text_survives_the_tokenizer(tokens: PreTrainedTokenizerFast, text: str) -> None:
    assert tokens.decode(tokens(text)["input_ids"], skip_special_tokens=True) == text


def test_tool_markers_survive_where_special_tokens_do_not(tokens: PreTrainedTokenizerFast) -> None:
    ids = tokens("<tool_call>\n{}\n</tool_call><|im_end|>")["input_ids"]

    assert tokens.decode(ids, skip_special_tokens=True) == "<tool_call>\n{}\n</tool_call>"


def test_no_token_is_put_before_a_prompt(tokens: PreTrainedTokenizerFast) -> None:
    assert tokens.decode(tokens("Once upon a time")["input_ids"]) == "Once upon a time"


def test_the_model_card_shows_the_measured_scores() -> None:
    scores = json.loads((WEIGHTS / "scores.json").read_text(encoding="utf-8"))

    assert as_markdown(scores) in (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
