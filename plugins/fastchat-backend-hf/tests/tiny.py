"""Tiny models with random weights, built in seconds: every mechanism of the big ones, and no download."""

from __future__ import annotations

import pydoc
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 1024

CHATML = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on docstrings of the standard library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_docstrings(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    )


def _docstrings() -> Iterator[str]:
    for name in ("argparse", "asyncio", "collections", "email", "functools", "json", "logging", "string", "textwrap"):
        module = import_module(name)
        yield pydoc.getdoc(module)
        for value in vars(module).values():
            yield pydoc.getdoc(value)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def seeded(make: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """`make` with the same random weights on every run."""
    torch.manual_seed(7)
    return make(config).eval()


def llama_config(**changes: object) -> LlamaConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        **_IDS,
    }
    return LlamaConfig(**(settings | changes))


def llama(**changes: object) -> PreTrainedModel:
    return seeded(LlamaForCausalLM, llama_config(**changes))


def mistral(window: int) -> PreTrainedModel:
    config = MistralConfig(**(llama_config().to_diff_dict() | {"sliding_window": window, "model_type": "mistral"}))
    return seeded(MistralForCausalLM, config)
