"""Whether a model's rows can share a pass, and how much cache memory they may take."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from fastchat_backend_hf.adapters import Adapters
from fastchat_backend_hf.attention import use_own_attention
from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.cache_names import cache_of
from fastchat_backend_hf.cells import Layout
from fastchat_backend_hf.checkpoint import Checkpoint
from fastchat_backend_hf.devices import execution_device, free_memory, parse_bytes
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.reading import BLOCK_TOKENS
from fastchat_backend_hf.runners import Block, Context, Runner
from fastchat_backend_hf.solo import EncoderDecoderRunner, SoloRunner
from fastchat_serve import StartupError

__all__ = ["choose_runner"]

_HOST_SHARE, _DEVICE_SHARE = 0.25, 0.85
"""Of the memory free after loading, what the cache may take: a host has other tenants, a device has activations."""


def choose_runner(
    checkpoint: Checkpoint, model: Any, adapters: Adapters, options: HfOptions, context_length: int
) -> tuple[Runner, int, list[str]]:
    """The runner for `model`, the context length that its cache can hold, and notes for the operator."""
    text_config = checkpoint.text_config
    if checkpoint.kind == "encoder-decoder":
        obstacle: str | None = "it is an encoder-decoder"
    else:
        obstacle = _obstacle(text_config, context_length)
    layout, attends = None, False
    if obstacle is None:
        attends = use_own_attention(model)
        layout, obstacle = _trial(model, attends=attends)
        if attends and obstacle is not None:
            attends = False
            layout, obstacle = _trial(model, attends=False)
    notes = [] if obstacle is None else [f"requests run one at a time within a step: {obstacle}"]

    bytes_per_token = layout.bytes_per_token if layout else _estimated_bytes_per_token(text_config, model)
    budget = _budget(options, model, bytes_per_token, context_length)
    if budget < context_length:
        notes.append(f"the key-value cache holds {budget} tokens, less than the model's context of {context_length}")
        context_length = budget
    if layout is not None:
        batch_runner = BatchRunner(
            model,
            layout,
            max_rows=options.max_batch,
            max_columns=context_length,
            budget_tokens=budget,
            share_prefixes=options.prefix_cache,
            attends=attends,
            adapters=adapters,
        )
        return batch_runner, context_length, notes
    if checkpoint.kind == "encoder-decoder":
        prefix = _decoder_prefix(model)
        runner = EncoderDecoderRunner(model, budget_tokens=budget, adapters=adapters, prefix=prefix)
        return runner, context_length, notes
    return SoloRunner(model, budget_tokens=budget, adapters=adapters), context_length, notes


def _obstacle(text_config: Any, context_length: int) -> str | None:
    """Why the layers' caches cannot share rows, None if they can."""
    for layer in DynamicCache(config=text_config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if layer.sliding_window < context_length:  # a window over the whole context hides nothing
                return f"its attention slides over a window of {layer.sliding_window} tokens"
        elif type(layer) is not DynamicLayer:
            return "not all of its layers keep plain keys and values"
    return _rope_obstacle(text_config, context_length)


def _rope_obstacle(text_config: Any, context_length: int) -> str | None:
    """Some kinds turn all tokens of a pass by what the longest row asks for: its neighbours would answer otherwise."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    for one in (rope, *rope.values()):  # one for all layers, or one for each kind of them
        if not isinstance(one, dict) or one.get("rope_type") not in ("dynamic", "longrope"):
            continue
        original = text_config.max_position_embeddings
        if one["rope_type"] == "longrope":
            original = one.get("original_max_position_embeddings") or original
        if context_length > original:
            return (
                f"its positions change with the longest row of a pass; with a context_length of {original} they do not"
            )
    return None


@torch.inference_mode()
def _trial(model: Any, *, attends: bool) -> tuple[Layout | None, str | None]:
    """Generate with two rows and compare with each row alone: the layout of the cache, or why it does not work.

    Their prompts are read in blocks, that of the second beside the first answer, and they lie on two shelves.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    first, second = rows = [[(7 * i + 3) % vocabulary for i in range(6)], [(5 * i + 2) % vocabulary for i in range(3)]]
    device = execution_device(model.get_input_embeddings())
    try:
        alone = [model(input_ids=torch.tensor([row], device=device), use_cache=True) for row in rows]
        layout = Layout(cache_of(alone[0])[1])
        runner = BatchRunner(
            model,
            layout,
            max_rows=2,
            max_columns=8,
            budget_tokens=16,
            share_prefixes=False,
            attends=attends,
            adapters=Adapters(),
            least_columns=4,
        )
        reading = runner.open(Context(first[:-1], ()))
        while reading.left:
            runner.read([reading], 2)
        runner.join(reading)
        reading = runner.open(Context(second, ()))
        runner.decode([first[-2]], [Block(reading, 2)])
        runner.join(reading)
        found = runner.decode([first[-1], second[-1]]).float()
    except Exception as error:  # models refuse a foreign cache in many ways
        return None, f"the model does not take a shared cache ({type(error).__name__})"
    expected = torch.stack([out.logits[0, -1].float() for out in alone]).to(found.device)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if (found - expected).abs().max() > tolerance * expected.abs().max():
        return None, "the model's output changes when rows share a pass"
    return layout, None


def _budget(options: HfOptions, model: Any, bytes_per_token: int, context_length: int) -> int:
    """Tokens that the cache may hold. Raises `StartupError` if that is next to nothing."""
    most = options.max_batch * _blocks(context_length + BLOCK_TOKENS - 1)
    if options.kv_cache_tokens is not None:
        tokens = options.kv_cache_tokens
    elif options.kv_cache_bytes is not None:
        tokens = parse_bytes(options.kv_cache_bytes) // bytes_per_token
    else:
        device = execution_device(model.get_input_embeddings())
        share = _HOST_SHARE if device.type == "cpu" else _DEVICE_SHARE
        tokens = int(free_memory(device) * share) // bytes_per_token
    if tokens < BLOCK_TOKENS:
        raise StartupError(
            f"no memory is left for the key-value cache: {tokens} tokens of {bytes_per_token} bytes fit; "
            "choose a smaller model, `dtype` or `quantization`, or raise `kv_cache_bytes`"
        )
    return min(_blocks(tokens), most)


def _blocks(tokens: int) -> int:
    return tokens // BLOCK_TOKENS * BLOCK_TOKENS


def _estimated_bytes_per_token(text_config: Any, model: Any) -> int:
    """Keys and values of all layers, from the config; for caches that are not ours to measure."""
    heads = getattr(text_config, "num_key_value_heads", None) or getattr(text_config, "num_attention_heads", None) or 1
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return int(2 * text_config.num_hidden_layers * heads * width * model.dtype.itemsize)


def _decoder_prefix(model: Any) -> list[int]:
    """What the decoder reads before the answer."""
    for source in (model.generation_config, model.config):
        start = getattr(source, "decoder_start_token_id", None)
        if start is not None:
            forced = getattr(source, "forced_bos_token_id", None)
            return [start] if forced is None else [start, forced]
    raise StartupError("the model does not say with which token its decoder starts")
