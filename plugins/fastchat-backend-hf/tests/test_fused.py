"""Layers in fewer operations: the same answers, and nothing touched that is not known."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from hf_answers import Folder, Opened, answer, asking
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fastchat_backend_hf import fused as fused_module
from fastchat_backend_hf import packed
from fastchat_backend_hf.devices import bfloat16_instructions
from fastchat_backend_hf.fused import FusedLayer, fuse
from fastchat_backend_hf.packed import PackedLinear

PROMPTS = torch.tensor([[5, 6, 7, 8, 9], [21, 3, 400, 17, 1000]])

KNOWN = ["Gemma", "Gemma3Text", "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe"]
UNKNOWN = ["Gemma2", "GPTNeoX", "Granite", "Olmo", "Phi3", "SmolLM3", "StableLm"]


def made(family: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of `family`, the same each time. What only some families know, the others ignore."""
    settings = tiny_models.llama_config().to_diff_dict() | {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "clip_qkv": 0.5,
        "tie_word_embeddings": False,
        "pad_token_id": 3,
        **changes,
    }
    settings.pop("model_type")
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith("bias"):  # which all begin as ones or zeros
                parameter.add_(torch.rand_like(parameter) - 0.5)
    return model


@torch.inference_mode()
def greedy(model: PreTrainedModel, tokens: int = 24) -> Tensor:
    mask = torch.ones_like(PROMPTS)
    found: Tensor = model.generate(
        PROMPTS, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
    )
    return found


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(PROMPTS).logits
    return found


def fused_layers(model: nn.Module) -> int:
    return sum(isinstance(module, FusedLayer) for module in model.modules())


@pytest.mark.parametrize("family", KNOWN)
def test_a_fused_model_gives_the_same_logits_and_the_same_greedy_tokens(family: str) -> None:
    plain, model = made(family), made(family)
    assert fuse(model) == fused_layers(model) == 4
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    assert torch.equal(greedy(model), greedy(plain))


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_layer_of_another_kind_stays_as_it_is(family: str) -> None:
    model = made(family)
    before = [type(module) for module in model.modules()]
    assert fuse(model) == 0
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 4}, {"attention_bias": True, "mlp_bias": True}], ids=str)
def test_heads_and_biases_of_every_number_are_fused(changes: dict[str, Any]) -> None:
    plain, model = made("Llama", **changes), made("Llama", **changes)
    assert fuse(model) == 4
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_that_only_looks_like_a_known_one_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """A release of transformers could change what a class computes."""
    model = made("Llama").to(dtype)
    layer = type(model.model.layers[0])
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, *args, **options: 1.1 * forward(self, *args, **options))
    assert fuse(model) == 0
    assert fused_layers(model) == 0


def test_a_layer_that_lacks_what_its_kind_has_stays_as_it_is() -> None:
    model = made("Llama")
    model.model.layers[1].input_layernorm = nn.Identity()
    assert fuse(model) == 3


def test_a_model_that_cannot_make_the_trial_pass_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("Llama")
    forward = model.model.forward

    def needs_more(*args: Any, **options: Any) -> Any:
        raise ValueError("and pixels?")

    monkeypatch.setattr(model.model, "forward", needs_more)
    assert fuse(model) == 0
    monkeypatch.setattr(model.model, "forward", forward)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_layers_whose_weights_are_quantised_or_adapted_stay_as_they_are() -> None:
    class Adapted(nn.Linear):
        pass

    model = made("Llama")
    old = model.model.layers[1].self_attn.v_proj
    adapted = Adapted(old.in_features, old.out_features, bias=False)
    model.model.layers[1].self_attn.v_proj = adapted
    model.model.layers[2].mlp.up_proj.__class__ = Adapted
    plain = logits(model)
    assert fuse(model) == 3
    assert model.model.layers[1].self_attn.v_proj is adapted
    torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=1e-4)


def test_fusing_holds_no_weights_twice() -> None:
    model = made("Llama")
    old = [weakref.ref(module) for layer in model.model.layers for module in layer.modules()]
    fuse(model)
    gc.collect()
    assert not [reference() for reference in old if isinstance(reference(), nn.Linear)]


# ------------------------------------------------------------------------------------------- bfloat16


needs_bfloat16 = pytest.mark.skipif(not bfloat16_instructions(), reason="the processor has no bfloat16 instructions")


@needs_bfloat16
@pytest.mark.parametrize("family", [family for family in KNOWN if family[-3:] not in ("Moe", "ral")])
def test_in_bfloat16_a_fused_model_is_as_near_to_float32_as_the_plain_one(family: str) -> None:
    """Mixtures of experts are left out: rounding sends tokens to other experts."""
    exact = logits(made(family))
    plain, model = made(family).bfloat16(), made(family).bfloat16()
    assert fuse(model) == 4
    assert isinstance(model.lm_head, PackedLinear)
    assert (logits(model) - exact).norm() < 1.3 * (logits(plain) - exact).norm()


@needs_bfloat16
def test_a_packed_matrix_multiplies_exactly_as_torch_does() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(48, 80).bfloat16()
    states = torch.randn(3, 7, 48).bfloat16()
    with torch.inference_mode():
        assert torch.equal(PackedLinear(layer.weight.detach(), layer.bias.detach())(states), layer(states))


@needs_bfloat16
def test_a_head_that_is_also_the_embedding_is_not_packed() -> None:
    model = made("Llama", tie_word_embeddings=True).bfloat16()
    fuse(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_in_float32_are_not_packed() -> None:
    model = made("Llama")
    fuse(model)
    assert type(model.lm_head) is nn.Linear
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_nothing_is_packed_for_a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "bfloat16_instructions", lambda: None)
    model = made("Llama").bfloat16()
    assert fuse(model) == 4
    assert type(model.lm_head) is nn.Linear


# ----------------------------------------------------------------------------------------- in the engine


@pytest.mark.anyio
async def test_the_engine_runs_fused_and_answers_as_the_plain_model(opened: Opened, llama: PreTrainedModel) -> None:
    with torch.inference_mode():
        expected = llama.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=32, min_new_tokens=32)
    async with opened() as engine:
        got = await answer(engine, asking(max_tokens=32, ignore_eos=True))
        assert engine._loaded.generation is not None
        assert fused_layers(engine._loaded.generation._runner._model) == 2  # type: ignore[attr-defined]
    assert got.ids == expected[0, 3:].tolist()


@needs_bfloat16
@pytest.mark.anyio
async def test_a_checkpoint_in_bfloat16_runs_in_it(folder: Folder, opened: Opened, tmp_path: Path) -> None:
    model = tiny_models.llama().bfloat16()
    tiny_models.save_model(tmp_path, model, tiny_models.build_tokenizer())
    async with opened(tmp_path) as engine:
        assert engine.info.dtype == "bfloat16"
        assert len((await answer(engine, asking(max_tokens=12, ignore_eos=True))).ids) == 12
    async with opened(tmp_path, dtype="float32") as engine:
        assert engine.info.dtype == "float32"


@pytest.mark.anyio
async def test_unloading_frees_fused_weights(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    made_layers: list[weakref.ref[FusedLayer]] = []

    class Watched(FusedLayer):
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            made_layers.append(weakref.ref(self))

    monkeypatch.setattr(fused_module, "FusedLayer", Watched)
    async with opened() as engine:
        await answer(engine, asking())
        assert all(reference() is not None for reference in made_layers)
        assert made_layers
    gc.collect()
    assert all(reference() is None for reference in made_layers)
