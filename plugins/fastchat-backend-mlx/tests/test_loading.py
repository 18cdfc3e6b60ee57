"""Folders of every kind, options, and what an operator is told when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_answers import PROMPTS, WEIGHTS, Opened, answer, asking
from mlx_lm.models.cache import ChunkedKVCache
from mlx_lm.tuner.utils import linear_to_lora_layers

from fastchat_backend_mlx import CAPABILITIES, loading
from fastchat_backend_mlx.context import model_context_length
from fastchat_backend_mlx.options import in_bytes
from fastchat_serve import Capability, ConfigError, PushEngine, Renders, StartupError, Tokenizes

pytestmark = pytest.mark.anyio


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the demonstration model, to be changed."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "model"))


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "model"
    mlx_lm.convert(str(WEIGHTS), str(folder), quantize=True, q_bits=4, q_group_size=32)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One that changes every answer, as ``mlx_lm.lora`` saves it."""
    settings = {"rank": 4, "scale": 8.0, "dropout": 0.0}
    model, _ = mlx_lm.load(str(WEIGHTS))
    linear_to_lora_layers(model, 2, settings)
    mx.random.seed(1)
    weights = {
        name: mx.random.normal(value.shape) * 0.1
        for name, value in tree_flatten(model.parameters())
        if name.endswith(("lora_a", "lora_b"))
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    described = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


async def test_an_open_engine_says_what_it_is(opened: Opened) -> None:
    async with opened() as engine:
        info = engine.info
        assert isinstance(engine, PushEngine)
        assert isinstance(engine, Tokenizes)
        assert isinstance(engine, Renders)

    assert info.context_length == 2048
    assert info.capabilities == CAPABILITIES
    assert (info.dtype, info.tool_parser, info.notes) == ("float32", "hermes", ())
    assert info.sampling.temperature == 0.3  # the model's makers say so


async def test_equal_models_have_equal_fingerprints_and_others_do_not(opened: Opened, copy: Path) -> None:
    template = copy / "other.jinja"
    template.write_text("{{ messages[0].content }}")
    found = []
    for model, options in ((WEIGHTS, {}), (copy, {}), (copy, {"dtype": "auto"}), (copy, {"chat_template": template})):
        async with opened(model, **options) as engine:
            found.append(engine.info.fingerprint)

    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("auto", "bfloat16"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
async def test_weights_have_the_wanted_precision_and_answer(opened: Opened, wanted: str, given: str) -> None:
    async with opened(dtype=wanted) as engine:
        got = await answer(engine, asking(PROMPTS[2], logprobs=1))
        assert engine.info.dtype == given

    assert "15" in got.text


async def test_folders_with_four_bits_generate(opened: Opened, four_bits: Path) -> None:
    async with opened(four_bits, dtype="auto") as engine:
        got = await answer(engine, asking(PROMPTS[0]))
        sampled = await answer(engine, asking(PROMPTS[0], temperature=1.0, seed=4))
        again = await answer(engine, asking(PROMPTS[0], temperature=1.0, seed=4))

    assert len(got.text) > 3
    assert sampled.token_ids == again.token_ids


@pytest.mark.parametrize("quantised", [False, True])
async def test_an_adapter_changes_the_answers(opened: Opened, adapter: Path, four_bits: Path, quantised: bool) -> None:
    model = four_bits if quantised else WEIGHTS
    async with opened(model) as engine:
        plain, fingerprint = await answer(engine, asking()), engine.info.fingerprint
    async with opened(model, adapter=adapter) as engine:
        adapted = await answer(engine, asking())
        assert engine.info.fingerprint != fingerprint

    expected, tokenizer = mlx_lm.load(str(model), adapter_path=str(adapter), lazy=True)
    expected.set_dtype(mx.float32)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPTS[3]}], add_generation_prompt=True)
    assert adapted.token_ids != plain.token_ids
    assert list(adapted.token_ids) == [
        response.token for response in mlx_lm.stream_generate(expected, tokenizer, prompt, max_tokens=24)
    ]


async def test_a_chat_template_of_ones_own_is_used(opened: Opened, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{{ greeting }} {{ messages[0].content }}")
    async with opened(chat_template=template, chat_template_kwargs={"greeting": "str"}) as engine:
        prompt = asking("you").prompt
        assert await engine.render(prompt) == " you"
        assert Capability.TOOLS not in engine.info.capabilities


async def test_without_a_template_a_model_does_not_chat(opened: Opened, copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    async with opened(copy) as engine:
        assert CAPABILITIES - engine.info.capabilities == {
            Capability.CHAT,
            Capability.RENDER,
            Capability.TOOLS,
            Capability.TOOL_CHOICE,
        }


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("config.json"), "it has no config.json"),
        (remove("model.safetensors"), "no weights that mlx reads"),
        (remove("tokenizer.json"), "cannot be loaded"),
        (write("config.json", "{"), "the model cannot be loaded"),
        (write("config.json", '{"model_type": "unheard"}'), "unheard not supported"),
        (write("model.safetensors", "cut short"), "the model cannot be loaded"),
        (write("generation_config.json", "{"), "generation_config.json of the model is not valid JSON"),
    ],
    ids=["config", "weights", "tokenizer", "bad config", "unknown kind", "bad weights", "bad generation config"],
)
async def test_a_folder_that_is_not_right_is_told_in_words(
    opened: Opened, copy: Path, spoil: Any, message: str
) -> None:
    spoil(copy)
    with pytest.raises(StartupError, match=message):
        async with opened(copy):
            pass


async def test_a_folder_that_is_not_there_is_told_in_words(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no such model folder"):
        async with opened(tmp_path / "nowhere"):
            pass
    with pytest.raises(StartupError, match="the adapter cannot be loaded"):
        async with opened(adapter=tmp_path / "nowhere"):
            pass
    with pytest.raises(ConfigError, match="no such chat template file"):
        async with opened(chat_template=tmp_path / "nowhere"):
            pass


async def test_a_model_that_mlx_lm_cannot_batch_is_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "make_prompt_cache", lambda model: [ChunkedKVCache(8)])

    with pytest.raises(StartupError, match="cannot batch this model: it has no batched form of ChunkedKVCache"):
        async with opened():
            pass


async def test_a_context_over_the_models_own_is_remarked_on(opened: Opened) -> None:
    async with opened(context_length=4096) as engine:
        (note,) = engine.info.notes

    assert re.search("4096 is over the 2048", note)


@pytest.mark.parametrize(
    ("config", "limit", "expected"),
    [
        ({"max_position_embeddings": 100}, 7, 100),
        ({"text_config": {"n_positions": 50}}, 7, 50),
        ({}, 77, 77),
        ({}, 10**30, None),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 7, 400),
        (
            {
                "max_position_embeddings": 100,
                "rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 100},
            },
            7,
            400,
        ),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 7, 100),
    ],
)
def test_the_context_length_is_read_from_the_config(config: dict[str, Any], limit: int, expected: int | None) -> None:
    assert model_context_length(config, limit) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [("0B", 0), ("7B", 7), ("2KiB", 2048), ("1.5 GB", 3 * 2**29), ("1T", 2**40)],
)
def test_sizes_are_in_powers_of_1024(size: str, expected: int) -> None:
    assert in_bytes(size) == expected
