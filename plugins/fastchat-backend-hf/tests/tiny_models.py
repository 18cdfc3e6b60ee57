"""Tiny models with random weights, built in seconds: every mechanism of the big ones, and no download."""

from __future__ import annotations

import pydoc
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
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
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


def short_window() -> PreTrainedModel:
    settings = llama_config().to_diff_dict() | {"sliding_window": 16}
    settings.pop("model_type")
    return seeded(MistralForCausalLM, MistralConfig(**settings))


def hybrid_gemma() -> PreTrainedModel:
    """Layers with and without a sliding window."""
    settings = llama_config().to_diff_dict() | {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 2}
    settings.pop("model_type")
    layer_types = ["sliding_attention", "full_attention"]
    return seeded(Gemma3ForCausalLM, Gemma3TextConfig(**settings, layer_types=layer_types))


def mamba() -> PreTrainedModel:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, initializer_range=0.2, **_IDS)
    return seeded(MambaForCausalLM, config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, **_IDS
    )
    return seeded(GPT2LMHeadModel, config)


def bloom() -> PreTrainedModel:
    """Positions by ALiBi, made from the attention mask."""
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2, **_IDS)
    return seeded(BloomForCausalLM, config)


def opt() -> PreTrainedModel:
    """Learned positions with an offset."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=64,
        init_std=0.2,
        **_IDS,
    )
    return seeded(OPTForCausalLM, config)


def t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        initializer_factor=2.0,
        decoder_start_token_id=3,
        eos_token_id=2,
        pad_token_id=3,
    )
    return seeded(T5ForConditionalGeneration, config)


def bart() -> PreTrainedModel:
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=256,
        init_std=0.2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **_IDS,
    )
    return seeded(BartForConditionalGeneration, config)


def mbart() -> PreTrainedModel:
    """The first token of every answer is forced, and not part of it."""
    settings = bart().config.to_diff_dict() | {"forced_bos_token_id": 5}
    settings.pop("model_type")
    return seeded(MBartForConditionalGeneration, MBartConfig(**settings))


def marian() -> PreTrainedModel:
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=256,
        init_std=0.2,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
        **_IDS,
    )
    return seeded(MarianMTModel, config)


def bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=3,
    )
    return seeded(BertModel, config)
