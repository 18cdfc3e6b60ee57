"""vLLM for `hf.py`, to be run by the Python of an environment that has it: ``python hf_vllm.py MODEL_FOLDER``.

Reads lines of JSON, ``{"prompts": [[ID, …], …], "new_tokens": N}``, generates for all prompts at once, and prints
``{"seconds": S}`` for each line.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from importlib import import_module
from typing import Any


async def main(folder: str) -> None:
    vllm: Any = import_module("vllm")  # by name: it is not in the environment that checks types
    async_llm: Any = import_module("vllm.v1.engine.async_llm")
    deltas = import_module("vllm.sampling_params").RequestOutputKind.DELTA
    engine = async_llm.AsyncLLM.from_engine_args(
        vllm.AsyncEngineArgs(
            model=folder,
            dtype="float32",
            max_model_len=512,
            max_num_seqs=16,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            distributed_executor_backend="uni",
        )
    )
    numbers = itertools.count()

    async def answer(prompt: list[int], new_tokens: int) -> None:
        (rendered,) = await engine.renderer.render_cmpl_async([{"prompt_token_ids": prompt}])
        sampling = vllm.SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, output_kind=deltas)
        count = 0
        async for output in engine.generate(rendered, sampling, f"bench-{next(numbers)}"):
            count += len(output.outputs[0].token_ids)
        assert count == new_tokens, count

    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            began = time.perf_counter()
            await asyncio.gather(*(answer(prompt, job["new_tokens"]) for prompt in job["prompts"]))
            sys.stdout.write(json.dumps({"seconds": time.perf_counter() - began}) + "\n")
            sys.stdout.flush()
    finally:
        engine.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(main(sys.argv[1]))
