"""Same prompt, greedy, float32: every engine draws the token ids that transformers' ``generate()`` does.

Each backend that is installed is opened as the server would, on the demonstration model. `nox -s engines` runs this in
each engine's own environment.
"""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import msgspec
import pytest

from fastchat_serve import EngineSetup, GenerateRequest, SamplingParams, TokenPrompt
from fastchat_serve.engine import Engine
from fastchat_serve.plugins import Plugins, installed
from tests.parity.reference import MAX_TOKENS, Answers, first_difference, generated, recorded, weights

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # engines' libraries warn of each other
]

FLOAT32: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "hf": {"dtype": "float32", "device": "cpu"},
        "vllm": {"dtype": "float32", "enforce_eager": True, "max_model_len": 512},
        "sglang": {"dtype": "float32"},
        "mlx": {"dtype": "float32"},
        "llamacpp": {"cache_type_k": "f32", "cache_type_v": "f32"},
    }
)
"""The options with which a backend computes in float32."""

REPOSITORY = Path(__file__).parents[2]
AT_ONCE = 4
PROMPTS_AND_ANSWERS = recorded()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.skipif(not (find_spec("torch") and find_spec("transformers")), reason="needs torch and transformers")
def test_the_reference_is_what_generate_answers() -> None:
    assert generated() == PROMPTS_AND_ANSWERS


@pytest.fixture(params=FLOAT32)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """One of each backend that is installed here, for the demonstration model; not open yet."""
    backend: str = request.param
    if backend not in installed():
        pytest.skip(f"the backend {backend} is not installed here")
    offered = Plugins().backend(backend)
    options = msgspec.convert(FLOAT32[backend], offered.options)
    model = as_gguf(tmp_path) if backend == "llamacpp" else weights()
    return offered.factory(EngineSetup(str(model), options, _no_progress))


async def test_greedy_answers_are_those_of_the_reference(engine: Engine) -> None:
    prompts, expected = PROMPTS_AND_ANSWERS
    found: Answers = [[] for _ in prompts]
    turns = anyio.CapacityLimiter(AT_ONCE)

    async with engine, anyio.create_task_group() as tasks:

        async def answer(number: int) -> None:
            async with turns:
                request = GenerateRequest(
                    id=f"parity-{number}",
                    prompt=TokenPrompt(tuple(prompts[number])),
                    sampling=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS),
                )
                found[number] = [id_ async for chunk in engine.generate_stream(request) for id_ in chunk.token_ids]

        for number in range(len(prompts)):
            tasks.start_soon(answer, number)

    assert not (difference := first_difference(expected, found)), difference


def as_gguf(folder: Path) -> Path:
    """The model in the only format that llama.cpp reads."""
    convert = runpy.run_path(str(REPOSITORY / "plugins/fastchat-backend-llamacpp/tests/convert.py"))["convert"]
    made = folder / "demo.gguf"
    convert(weights(), made)
    return made


def _no_progress(stage: str, fraction: float | None = None) -> None: ...
