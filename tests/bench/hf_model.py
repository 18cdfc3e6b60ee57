"""The model of the HF engine's benches: a random Llama of 22 million parameters with a context of 8192."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fastchat_model_demo import WEIGHTS

__all__ = ["VOCABULARY", "make_model", "prompt"]

VOCABULARY = 4096


def make_model(folder: Path) -> None:
    """The demonstration model's tokenizer with larger random weights."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((WEIGHTS / file).read_bytes())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        initializer_range=0.2,
        max_position_embeddings=8192,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def prompt(number: int, length: int = 32) -> tuple[int, ...]:
    """Token ids that differ from those of other numbers from the first one on."""
    return tuple((40 + 7 * number + 3 * position) % (VOCABULARY - 8) + 4 for position in range(length))
