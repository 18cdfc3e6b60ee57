"""The HF engine: tokens per second beside others, and what a stream feels of its neighbours.

The model is a random Llama of 22 million parameters, fp32 on one thread for all. Everything is measured once per round,
one after the other, so that whatever disturbs the machine disturbs all of them; on a busy one trust processor time.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import torch

from fastchat_serve.stepping import SteppingEngine
from tests.bench.hf_engine import first_token_s, gaps_s, loop_lags_s, opened, tokens_per_s
from tests.bench.hf_model import make_model
from tests.bench.hf_rivals import VLLM_PYTHON, Rival, Speed, continuous_batching, one_at_a_time, vllm
from tests.bench.report import Plan, Report, Row, Verdict

__all__ = ["measure"]

COUNTS = (1, 4, 16)
NEW_TOKENS = 64
STREAMS = 8
LONG_PROMPT = 4096
SHARED_PREFIX = 2048

OURS = "fastchat-serve, hf"
ALONE = "generate(), one at a time"
BATCHED = "transformers, continuous batching"
VLLM = "vLLM"

Figures = dict[str, list[float]]
Speeds = dict[tuple[str, int], list[Speed]]


def measure(plan: Plan) -> Report:
    """All of it, in one process, with vLLM in one of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        return anyio.run(_measure, plan, Path(folder))


async def _measure(plan: Plan, folder: Path) -> Report:
    speeds: Speeds = defaultdict(list)
    felt: Figures = defaultdict(list)
    with ExitStack() as stack:
        rivals: dict[str, Rival | None] = {
            ALONE: stack.enter_context(one_at_a_time(folder)),
            BATCHED: stack.enter_context(continuous_batching(folder)),
            VLLM: await anyio.to_thread.run_sync(stack.enter_context, vllm(folder)),
        }
        async with opened(folder) as engine:
            await tokens_per_s(engine, 2, 4)
            for number in range(plan.rounds):
                plan.progress(f"round {number + 1} of {plan.rounds}: tokens per second")
                for count in COUNTS:
                    for name, rival in rivals.items():
                        if rival is not None:
                            speeds[name, count].append(await anyio.to_thread.run_sync(rival, count, NEW_TOKENS))
                    speeds[OURS, count].append(await tokens_per_s(engine, count, NEW_TOKENS))
                plan.progress(f"round {number + 1} of {plan.rounds}: gaps, first tokens, lag")
                await _feel(engine, felt)
    report = Report(
        tables={
            "tokens per second": _speed_rows(speeds, "wall"),
            "tokens per second of processor time": _speed_rows(speeds, "cpu"),
            "what a stream feels": _felt_rows(felt),
        }
    )
    report.verdicts += [*_speed_verdicts(speeds), *_felt_verdicts(felt)]
    if rivals[VLLM] is None:
        report.notes.append(f"vLLM is missing: {VLLM_PYTHON} names no Python that has it (nox -s bench -- hf --vllm).")
    for (name, count), runs in speeds.items():
        report.raw += [{"what": f"{name}, {count}", "tokens/s": one.wall, "tokens/CPU s": one.cpu} for one in runs]
    report.raw += [{"what": name, "seconds": found} for name, found in felt.items()]
    return report


async def _feel(engine: SteppingEngine, felt: Figures) -> None:
    """One round of what is not throughput, in seconds."""
    undisturbed, disturbed, read = await gaps_s(engine, STREAMS, LONG_PROMPT)
    for name, gaps in (("undisturbed", undisturbed), ("while a prompt is read", disturbed)):
        for share in (50, 99):
            felt[f"gap {name}, p{share}"].append(float(np.percentile(gaps, share)))
    felt[f"{LONG_PROMPT} tokens read beside {STREAMS} streams"].append(read)
    first, second = await first_token_s(engine, SHARED_PREFIX)
    felt["first token, prefix unknown"].append(first)
    felt["first token, prefix known"].append(second)
    for streams in (0, 16):
        lags = await loop_lags_s(engine, streams, NEW_TOKENS)
        felt[f"loop lag, {streams} streams, p99"].append(float(np.percentile(lags, 99)))


def _speed_rows(speeds: Speeds, clock: str) -> list[Row]:
    rows: list[Row] = []
    for name in (ALONE, BATCHED, VLLM, OURS):
        row: Row = {"what": name}
        for count in COUNTS:
            found = [getattr(speed, clock) for speed in speeds.get((name, count), ())]
            row[f"{count} at once"] = statistics.median(found) if found else "—"
        row["16 / generate()"] = _ratio(speeds, name, ALONE, clock) if (name, 16) in speeds else "—"
        rows.append(row)
    return rows


def _felt_rows(felt: Figures) -> list[Row]:
    return [{"what": name, "ms": statistics.median(found) * 1e3} for name, found in felt.items()]


def _ratio(speeds: Speeds, name: str, base: str, clock: str) -> float:
    """At 16 at once: the median over rounds of one by the other in the same round."""
    pairs = zip(speeds[name, 16], speeds[base, 16], strict=True)
    ratios: list[float] = [getattr(one, clock) / getattr(other, clock) for one, other in pairs]
    return statistics.median(ratios)


def _speed_verdicts(speeds: Speeds) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for clock, unit in (("wall", "tokens/s"), ("cpu", "tokens per CPU second")):
        alone, batched = (_ratio(speeds, OURS, base, clock) for base in (ALONE, BATCHED))
        verdicts += [
            Verdict(what=f"{unit}, 16 at once: ours / generate() one at a time", measured=alone, bar=5.0),
            Verdict(what=f"{unit}, 16 at once: ours / transformers' batching", measured=batched),
        ]
        if (VLLM, 16) in speeds:
            vllm = _ratio(speeds, OURS, VLLM, clock)
            verdicts.append(Verdict(what=f"{unit}, 16 at once: ours / vLLM", measured=vllm, bar=0.7, stretch=1.0))
    return verdicts


def _felt_verdicts(felt: Figures) -> list[Verdict]:
    def ratio(name: str, base: str) -> float:
        return statistics.median(one / other for one, other in zip(felt[name], felt[base], strict=True))

    gap = ratio("gap while a prompt is read, p99", "gap undisturbed, p99")
    first = ratio("first token, prefix known", "first token, prefix unknown")
    lag_ms = statistics.median(felt["loop lag, 16 streams, p99"]) * 1e3
    return [
        Verdict(what="gap p99: while a long prompt is read / undisturbed", measured=gap, bar=3.0, at_most=True),
        Verdict(what="first token: prefix known / unknown", measured=first, bar=0.2, at_most=True),
        Verdict(what="loop lag, 16 streams, p99", measured=lag_ms, bar=5.0, at_most=True, unit="ms"),
    ]
