"""Train the demonstration model: `python -m train.train`, about forty minutes on two cores.

Builds the tokenizer, learns from the endless corpus until the tokens or the minutes are used up, and keeps the best
weights so far on disk, so stopping early loses nothing. ``--start`` goes on from stored weights, on a part of the
corpus that they have not seen. `evaluate` then scores what is stored.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Final

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import attention, tokenizer
from .batches import IGNORED, Batch, batches
from .draw import Draw

SEED: Final = 20
TOKENS: Final = 40_000_000
MINUTES: Final = 40.5
TOKENS_PER_BATCH: Final = 3072
LEARNING_RATE: Final = 3e-3
CONTINUED_RATE: Final = 1.5e-3  # what was learnt must not be shaken off
WARM_UP: Final = 0.01  # of the run; then the rate falls in a straight line to zero
REPORT_SECONDS: Final = 30.0
CHECK_MINUTES: Final = 4.0


def new_model(tokens: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=tokenizer.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention.NAME)
    return model


def stored_model(folder: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation(attention.NAME)
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms: a loss of 2.1 after 0.7M tokens, AdamW alone 2.9."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The mean over learnt tokens; only those pass through the output layer."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        wanted = batch.targets != IGNORED
        scores = model.lm_head(hidden[wanted])
    return functional.cross_entropy(scores.float(), batch.targets[wanted])


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, held_out: list[Batch]) -> float:
    return sum(loss_of(model, batch).item() for batch in held_out) / len(held_out)


def save(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write beside `folder` first: a file there is always whole."""
    staging = Path(mkdtemp(dir=folder.parent))
    stored = LlamaForCausalLM(model.config).to(torch.bfloat16)
    stored.load_state_dict(model.state_dict())
    ends = [tokens.eos_token_id, tokens.bos_token_id]
    stored.generation_config = GenerationConfig(
        bos_token_id=tokens.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokens.pad_token_id,
        do_sample=True,
        temperature=0.3,
    )
    stored.save_pretrained(staging)
    tokens.save_pretrained(staging)
    settings = staging / "tokenizer_config.json"  # the class by the name that transformers 4 knows, too
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    folder.mkdir(exist_ok=True)
    for written in staging.iterdir():
        written.chmod(0o644)
        written.replace(folder / written.name)
    shutil.rmtree(staging)


def learn(
    model: LlamaForCausalLM, rows: Iterator[Batch], token_limit: int, minutes: float, highest_rate: float
) -> Iterator[tuple[float, int, float]]:
    """Step by step: the share done, the tokens read and the loss."""
    steppers = optimizers(model)
    began, seen, share = time.monotonic(), 0, 0.0
    while share < 1:
        rate = highest_rate * min(1.0, (share + 1e-4) / WARM_UP) * (1 - share)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
        batch = next(rows)
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        seen += batch.read
        share = max(seen / token_limit, (time.monotonic() - began) / 60 / minutes)
        yield min(share, 1.0), seen, loss.item()


def train(folder: Path, token_limit: int, minutes: float, start: Path | None) -> None:
    torch.manual_seed(SEED)
    torch.set_flush_denormal(True)  # vanishing probabilities otherwise cost a tenth of the time
    attention.install()
    if start is None:
        tokens, seed, rate = tokenizer.build(SEED), SEED, LEARNING_RATE
        model = new_model(tokens)
    else:
        tokens, seed, rate = PreTrainedTokenizerFast.from_pretrained(start), SEED + 2, CONTINUED_RATE
        model = stored_model(start)
    held_out = list(islice(batches(Draw(Random(SEED + 1), held_out=True), tokens, TOKENS_PER_BATCH), 12))
    best, began = float("inf"), time.monotonic()
    checked = reported = began
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("starting", total=1.0)
        rows = batches(Draw(Random(seed)), tokens, TOKENS_PER_BATCH)
        for share, seen, loss in learn(model, rows, token_limit, minutes, rate):
            now = time.monotonic()
            line = f"{seen / 1e6:.2f}M tokens, {seen / (now - began):.0f}/s, loss {loss:.3f}, best held-out {best:.3f}"
            progress.update(bar, completed=share, description=line)
            if progress.disable and now - reported > REPORT_SECONDS:
                reported = now
                print(f"{share:6.1%} {line}", flush=True)
            if share == 1 or now - checked > CHECK_MINUTES * 60:
                checked = now
                if (reached := mean_loss(model, held_out)) < best:
                    best = reached
                    save(model, tokens, folder)
    print(f"held-out loss {best:.4f} after {seen} tokens in {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=tokenizer.WEIGHTS, help="where the weights go")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="read at most this many")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="and for at most this long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="go on from the weights in this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.folder, arguments.tokens, arguments.minutes, arguments.start)
