"""Other ways to generate with the same model: transformers one at a time, its continuous batching, and vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM

from tests.bench.hf_model import prompt

__all__ = ["VLLM_PYTHON", "Rival", "Speed", "Stopwatch", "continuous_batching", "one_at_a_time", "vllm"]

VLLM_PYTHON = "FASTCHAT_BENCH_VLLM_PYTHON"
"""Environment variable: the Python of an environment with vLLM."""


class Speed(NamedTuple):
    """Tokens per second of wall clock, and of processor time: the latter stands still while others have the machine."""

    wall: float
    cpu: float


class Cost(NamedTuple):
    """Seconds that a run took."""

    wall: float
    cpu: float


Run = Callable[[int, int], Cost]


class Rival:
    """Generates `count` answers at once, of `new_tokens` each, after prompts of 32 tokens."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, count: int, new_tokens: int) -> Speed:
        cost = self._run(count, new_tokens)
        return Speed(count * new_tokens / cost.wall, count * new_tokens / cost.cpu)


class Stopwatch:
    """What this process, or a tree of processes, takes from now on."""

    def __init__(self, root: psutil.Process | None = None) -> None:
        root = root or psutil.Process()
        self._processes = [root, *root.children(recursive=True)] if root.pid != psutil.Process().pid else [root]
        self._wall, self._cpu = time.perf_counter(), self._cpu_s()

    def cost(self) -> Cost:
        return Cost(time.perf_counter() - self._wall, self._cpu_s() - self._cpu)

    def _cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[Rival]:
    """`generate()`. However many answers are wanted, three are measured: the others would take as long."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()

    def run(count: int, new_tokens: int) -> Cost:
        measured = min(count, 3)
        watch = Stopwatch()
        with torch.inference_mode():
            for number in range(measured):
                ids = torch.tensor([prompt(number)])
                model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        return Cost(*(seconds * count / measured for seconds in watch.cost()))

    yield Rival(run)


@contextmanager
def continuous_batching(folder: Path) -> Iterator[Rival]:
    """transformers' own manager."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=64, page_size=64, max_batch_tokens=256, max_requests_per_batch=16
        ),
    )

    def run(count: int, new_tokens: int) -> Cost:
        watch = Stopwatch()
        for number in range(count):
            manager.add_request(list(prompt(number)), max_new_tokens=new_tokens, eos_token_id=-1)
        for _ in range(count):
            result = manager.get_result(timeout=120)
            if result is None or len(result.generated_tokens) != new_tokens:
                raise RuntimeError(f"continuous batching gave {result}")
        return watch.cost()

    manager.start()
    try:
        run(1, 2)
        yield Rival(run)
    finally:
        manager.stop(block=True, timeout=30)


@contextmanager
def vllm(folder: Path) -> Iterator[Rival | None]:
    """`hf_vllm.py` in vLLM's own environment; None without one."""
    python = os.environ.get(VLLM_PYTHON)
    if python is None:
        yield None
        return
    script = Path(__file__).with_name("hf_vllm.py")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [python, str(script), str(folder)],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def run(count: int, new_tokens: int) -> Cost:
        watch = Stopwatch(psutil.Process(process.pid))
        requests.write(json.dumps({"prompts": [prompt(number) for number in range(count)], "new_tokens": new_tokens}))
        requests.write("\n")
        requests.flush()
        for line in answers:
            if line.startswith('{"seconds"'):  # vLLM prints there as well
                return watch.cost()._replace(wall=float(json.loads(line)["seconds"]))
        raise RuntimeError(f"vLLM ended with exit code {process.wait(10)}; run {script.name} by hand to see why")

    try:
        run(1, 2)
        yield Rival(run)
    finally:
        requests.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
