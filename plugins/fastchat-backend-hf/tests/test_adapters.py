"""Adapters share the model's weights: each answer is as if its adapter were alone, whoever is beside it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_models
import torch
from hf_answers import Answer, Folder, Opened, answer, asking
from transformers import PreTrainedModel

from fastchat_backend_hf.adapters import adapt
from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.fused import fuse
from fastchat_serve import Capability, InvalidRequest, StartupError, TextPrompt

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks transformers for it
]

Adapter = Callable[..., Path]

ATTENTION = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """``adapter("french", seed=1, r=4)``: the folder of a LoRA adapter for a tiny model, as peft saves it."""

    def adapter(name: str, seed: int, *, model: str = "llama", targets: Any = ATTENTION, **settings: Any) -> Path:
        torch.manual_seed(seed)
        config = peft.LoraConfig(**{"r": 4, "init_lora_weights": False, "target_modules": targets} | settings)
        adapted = peft.get_peft_model(getattr(tiny_models, model)(), config)
        adapted.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return adapter


def expected(folder: Path, prompt: list[int], tokens: int, model: str = "llama") -> list[int]:
    """What the adapter's own model says, with the adapter merged by peft."""
    adapted = peft.PeftModel.from_pretrained(getattr(tiny_models, model)(), folder).merge_and_unload()
    return greedy(adapted, prompt, tokens)


def greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    with torch.inference_mode():
        found = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens,
            eos_token_id=None,
        )
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    answered: list[int] = found[0, start:].tolist()
    return answered


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(4, 1000) for _ in range(rng.randint(3, longest))] for _ in range(count)]


async def all_answers(engine: Any, asked: list[list[int]], names: list[str | None], **fields: Any) -> list[Answer]:
    return await asyncio.gather(
        *(
            answer(engine, asking(prompt, adapter=name, max_tokens=16, ignore_eos=True, **fields))
            for prompt, name in zip(asked, names, strict=True)
        )
    )


async def test_each_adapter_answers_as_if_it_were_merged(opened: Opened, adapter: Adapter) -> None:
    """In one batch, with prompts read beside the answers of others, and several ranks, scales and layers."""
    folders = {
        "small": adapter("small", 1),
        "large": adapter("large", 2, r=8, lora_alpha=16, targets=ALL),
        "stable": adapter("stable", 3, r=3, use_rslora=True, alpha_pattern={"layers.1.self_attn.q_proj": 20}),
        "head": adapter("head", 4, targets=("lm_head", "up_proj"), rank_pattern={"up_proj": 2}),
    }
    asked = prompts(15)
    names = [*folders, None] * 3
    async with opened(adapters=folders) as engine:
        assert engine.info.adapters == tuple(folders)
        assert Capability.ADAPTERS in engine.info.capabilities
        assert isinstance(engine._loaded.generation._runner, BatchRunner)  # type: ignore[union-attr]
        got = await all_answers(engine, asked, names)
    for prompt, name, one in zip(asked, names, got, strict=True):
        want = expected(folders[name], prompt, 16) if name else greedy(tiny_models.llama(), prompt, 16)
        assert one.ids == want, name


async def test_without_adapters_answers_are_those_of_an_engine_that_has_none(opened: Opened, adapter: Adapter) -> None:
    """To the last bit."""
    asked = prompts(3)
    async with opened() as engine:
        plain = [await answer(engine, asking(prompt, logprobs=3)) for prompt in asked]
        bare = engine.info.fingerprint
    async with opened(adapters={"a": adapter("a", 1, targets=ALL), "b": adapter("b", 2)}) as engine:
        assert engine.info.fingerprint != bare
        other = await answer(engine, asking(asked[0], adapter="a", logprobs=3))
        again = [await answer(engine, asking(prompt, logprobs=3)) for prompt in asked]
    assert [one.chunks for one in again] == [one.chunks for one in plain]
    assert other.chunks != plain[0].chunks


def test_nothing_is_added_beside_a_neighbours_adapter(adapter: Adapter) -> None:
    """Not even a rounded zero."""
    model = tiny_models.llama()
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    with torch.inference_mode():
        plain = model(tokens).logits
        adapters = adapt(model, {"a": adapter("a", 1, targets=ALL), "b": adapter("b", 2)})
        fuse(model)
        fused = model(tokens).logits
        with adapters.chosen([["a"] * 3, [None] * 3, [None, None, "b"]], tokens.device):
            mixed = model(tokens).logits
    assert torch.allclose(fused, plain, atol=1e-3)
    assert torch.equal(mixed[1], fused[1])
    assert torch.equal(mixed[2, :2], fused[2, :2])
    assert not torch.allclose(mixed[0], fused[0], atol=0.1)
    assert not torch.allclose(mixed[2, 2], fused[2, 2], atol=0.1)


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("gpt2", ("c_attn", "c_fc")),
        ("opt", ("q_proj", "fc1")),
        ("bloom", ("query_key_value",)),
        ("hybrid_gemma", ("q_proj", "down_proj")),
        ("mamba", ("in_proj",)),
        ("t5", ("q", "v", "wo")),
        ("bart", ("q_proj", "v_proj", "fc1")),
    ],
)
async def test_adapters_of_other_models_work_too(
    opened: Opened, adapter: Adapter, model: str, targets: tuple[str, ...]
) -> None:
    settings = {"model": model, "targets": targets, "fan_in_fan_out": model == "gpt2"}
    folders = {name: adapter(name, seed, **settings) for seed, name in enumerate(("a", "b"))}
    asked, names = prompts(5, 20), ["a", "b", None, "b", "a"]
    async with opened(model, adapters=folders) as engine:
        got = await all_answers(engine, asked, names)  # type: ignore[arg-type]
    for prompt, name, one in zip(asked, names, got, strict=True):
        reference = getattr(tiny_models, model)()
        want = expected(folders[name], prompt, 16, model) if name else greedy(reference, prompt, 16)
        assert one.ids == want, name


async def test_an_adapters_answer_is_resumed_and_its_prompt_scored(opened: Opened, adapter: Adapter) -> None:
    folder = adapter("a", 1, targets=ALL)
    merged = peft.PeftModel.from_pretrained(tiny_models.llama(), folder).merge_and_unload()
    prompt = prompts(1)[0]
    async with opened(adapters={"a": folder}) as engine:
        whole = await answer(engine, asking(prompt, adapter="a", max_tokens=12, ignore_eos=True, prompt_logprobs=0))
        rest = await answer(
            engine,
            asking(prompt, adapter="a", max_tokens=12, ignore_eos=True, resume_token_ids=tuple(whole.ids[:5])),
        )
    assert rest.ids == whole.ids[5:]
    with torch.inference_mode():
        logprobs = merged(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert whole.chunks[0].prompt is not None
    told = [one.logprob for one in whole.chunks[0].prompt.logprobs or ()]
    assert told[1:] == pytest.approx([logprobs[i, token].item() for i, token in enumerate(prompt[1:])], abs=1e-3)


async def test_no_adapter_is_given_what_another_has_read(opened: Opened, adapter: Adapter) -> None:
    prompt = list(range(10, 110))
    async with opened(adapters={"a": adapter("a", 1), "b": adapter("b", 2)}) as engine:
        found = {
            name: [(await answer(engine, asking(prompt, adapter=name))).last.usage for _ in range(2)]
            for name in ("a", "b", None)
        }
    for first, second in found.values():
        assert first is not None
        assert second is not None
        assert (first.cached_tokens, second.cached_tokens) == (0, 96)


async def test_an_adapter_may_lie_beside_half_precision_and_a_merged_one(opened: Opened, adapter: Adapter) -> None:
    first, second = adapter("a", 1, targets=ALL), adapter("b", 2)
    async with opened(adapters={"a": first}, lora=second, dtype="bfloat16") as engine:
        one = await answer(engine, asking(adapter="a", max_tokens=10, ignore_eos=True))
        other = await answer(engine, asking(max_tokens=10, ignore_eos=True))
    assert len(one.ids) == len(other.ids) == 10
    assert one.ids != other.ids


async def test_an_unknown_adapter_is_refused(opened: Opened, adapter: Adapter) -> None:
    async with opened(adapters={"a": adapter("a", 1)}) as engine:
        with pytest.raises(InvalidRequest, match="no adapter 'b'") as caught:
            await answer(engine, asking(adapter="b"))
        assert caught.value.param == "model"
        assert await engine.tokenize(TextPrompt("Return"))


def edited(folder: Path, *, config: Mapping[str, Any] | None = None, rename: tuple[str, str] = ("", "")) -> Path:
    """`folder` with another config, or with tensors of another name."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(config or {})))
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace(*rename): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(renamed, folder / "adapter_model.safetensors")
    return folder


async def test_what_cannot_share_a_model_is_refused_with_its_reason(
    opened: Opened, adapter: Adapter, folder: Folder
) -> None:
    wrong = {
        r"no adapter_config\.json": folder("llama"),
        "magnitude_vector|use_dora": adapter("dora", 1, use_dora=True),
        "more than LoRA matrices": adapter("saved", 1, modules_to_save=["lm_head"]),
        "no linear layer model.layers.7.": edited(adapter("deep", 1), rename=("layers.1.", "layers.7.")),
        "part of a mixture of experts": edited(adapter("moe", 1), rename=("self_attn.q_proj", "mlp.experts.0.up_proj")),
        "no linear layer .*norm": edited(adapter("norm", 1), rename=("self_attn.q_proj", "input_layernorm")),
        "the two LoRA matrices": edited(adapter("half", 1), rename=("0.self_attn.q_proj.lora_A", "9.lora_A")),
        "takes 64 numbers and gives 64, the adapter's 64 and 32": edited(
            adapter("swapped", 1, targets=["v_proj"]), rename=("v_proj", "q_proj")
        ),
        "type 'IA3'": edited(adapter("ia3", 1), config={"peft_type": "IA3"}),
        "changes the base model's weights": edited(adapter("pissa", 1), config={"init_lora_weights": "pissa"}),
    }
    for reason, path in wrong.items():
        with pytest.raises(StartupError, match=rf"the adapter 'x' cannot be used: .*{reason}"):
            async with opened(adapters={"x": path}):
                pass


async def test_pickled_adapters_are_read_without_running_them(opened: Opened, adapter: Adapter) -> None:
    path = adapter("a", 1)
    tensors = safetensors.torch.load_file(path / "adapter_model.safetensors")
    (path / "adapter_model.safetensors").unlink()
    torch.save(tensors, path / "adapter_model.bin")
    async with opened(adapters={"a": path}) as engine:
        assert (await answer(engine, asking(adapter="a"))).ids
    torch.save({"x": Path("anything that is no tensor")}, path / "adapter_model.bin")
    with pytest.raises(StartupError, match="its weights cannot be read"):
        async with opened(adapters={"a": path}):
            pass
