"""Tokens per second of the HF engine at 1, 4 and 16 answers at once, against `generate()` one at a time.

The model is a random Llama of 22 million parameters, made here; one thread, fp32.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import anyio
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fastchat_backend_hf.engine import HfEngine
from fastchat_backend_hf.options import HfOptions
from fastchat_model_demo import WEIGHTS
from fastchat_serve import EngineSetup, GenerateRequest, SamplingParams, TokenPrompt

NEW_TOKENS = 64
PROMPT = tuple(range(40, 72))


def measure() -> list[dict[str, object]]:
    """One row per number of answers; `ratio` is against `generate()` in this run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = _make_model(Path(folder))
        model = LlamaForCausalLM.from_pretrained(folder).eval()
        baseline = max(_generate(model) for _ in range(2))
        del model
        rows: list[dict[str, object]] = [{"what": "generate(), one at a time", "tokens/s": baseline, "ratio": 1.0}]
        for count, speed in anyio.run(_engine, folder, vocabulary):
            rows.append({"what": f"engine, {count} at once", "tokens/s": speed, "ratio": speed / baseline})
    return rows


def _make_model(folder: Path) -> int:
    """The demonstration model's tokenizer with larger random weights; returns the size of its vocabulary."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((WEIGHTS / file).read_bytes())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        initializer_range=0.2,
        max_position_embeddings=2048,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return config.vocab_size


def _generate(model: LlamaForCausalLM) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    return NEW_TOKENS / (time.perf_counter() - began)


async def _engine(folder: str, vocabulary: int) -> list[tuple[int, float]]:
    setup = EngineSetup(folder, HfOptions(device="cpu", threads=1), lambda stage, fraction=None: None)
    found = []
    async with HfEngine(setup) as engine:
        for count in (1, 4, 16):
            found.append((count, max([await _run(engine, count, vocabulary) for _ in range(2)])))
    return found


async def _run(engine: HfEngine, count: int, vocabulary: int) -> float:
    async def one(number: int) -> None:
        request = GenerateRequest(
            id=f"bench-{number}",
            prompt=TokenPrompt(tuple((token + number) % vocabulary for token in PROMPT)),
            sampling=SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True),
        )
        async for _ in engine.generate_stream(request):
            pass

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(one, number)
    return count * NEW_TOKENS / (time.perf_counter() - began)
