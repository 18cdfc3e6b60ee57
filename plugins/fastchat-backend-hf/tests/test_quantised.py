"""Checkpoints that are quantised already load by themselves, and answer as the weights they stand for."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from hf_answers import Folder, Opened, answer, asking
from quantised_models import FORMATS, quantised
from transformers import PreTrainedModel

from fastchat_backend_hf import HfOptions, devices, quantization
from fastchat_backend_hf.checkpoint import open_checkpoint
from fastchat_backend_hf.fused import FusedLayer
from fastchat_backend_hf.quantization import prepare_stored, unpacked_bits
from fastchat_serve import StartupError

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),  # of the libraries
    pytest.mark.filterwarnings("ignore:.*torch.*:UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

Stored = Callable[[str], tuple[Path, PreTrainedModel]]

CPU = torch.device("cpu")

HERE = [
    pytest.param(
        method,
        marks=pytest.mark.skipif(
            any(
                importlib.util.find_spec(module) is None for module in quantization._LIBRARIES.get(method, ("", ()))[1]
            ),
            reason=f"the libraries for {method} are not installed",
        ),
    )
    for method in FORMATS
]


@pytest.fixture
def stored(tmp_path: Path, folder: Folder) -> Stored:
    """``stored("gptq")``: the folder of a tiny Llama, quantised, and the model that it stands for."""

    def stored(method: str) -> tuple[Path, PreTrainedModel]:
        path = tmp_path / method
        shutil.copytree(folder("llama"), path)
        return path, quantised(path, tiny_models.llama(), method)

    return stored


def opened_checkpoint(path: Path) -> object:
    return open_checkpoint(str(path), revision=None, trust_remote_code=False, progress=lambda *_: None)


@pytest.mark.parametrize("method", HERE)
async def test_a_quantised_checkpoint_answers_as_what_it_stands_for(
    opened: Opened, stored: Stored, method: str
) -> None:
    path, meant = stored(method)
    kernel = "torch" if method in ("gptq", "awq") else "auto"  # others are compiled first, for minutes
    prompts = [[5, 6, 7, number] for number in range(5)]
    async with opened(path, gptq_kernel=kernel) as engine:
        assert any(method in note for note in engine.info.notes)
        got = await asyncio.gather(
            *(answer(engine, asking(p, max_tokens=6, ignore_eos=True, prompt_logprobs=0)) for p in prompts)
        )
    for prompt, one in zip(prompts, got, strict=True):
        with torch.inference_mode():
            logprobs = meant(torch.tensor([prompt + one.ids])).logits[0].log_softmax(-1)
        assert one.chunks[0].prompt is not None
        told = [token.logprob for token in one.chunks[0].prompt.logprobs or ()][1:]
        assert told == pytest.approx([logprobs[i, token].item() for i, token in enumerate(prompt[1:])], abs=0.02)
        for place, token in enumerate(one.ids, len(prompt) - 1):  # kernels compute in half precision
            assert logprobs[place, token] >= logprobs[place].max() - 0.02


@pytest.mark.parametrize("method", [param for param in HERE if param.values[0] in ("compressed-tensors", "fp8")])
async def test_what_no_kernel_takes_is_unpacked_and_fused(opened: Opened, stored: Stored, method: str) -> None:
    path, _ = stored(method)
    async with opened(path) as engine:
        assert any("unpacked to float32" in note for note in engine.info.notes)
        assert engine._loaded.generation is not None
        model = engine._loaded.generation._runner._model  # type: ignore[attr-defined]
        assert all(isinstance(layer, FusedLayer) for layer in model.model.layers)


@pytest.mark.parametrize("method", [param for param in HERE if param.values[0] in ("gptq", "awq")])
async def test_quantised_layers_are_left_as_they_are_and_an_adapter_may_lie_beside_them(
    opened: Opened, stored: Stored, tmp_path: Path, method: str
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"])
    peft.get_peft_model(tiny_models.llama(), config).save_pretrained(tmp_path / "adapter")
    path, meant = stored(method)
    merged = peft.PeftModel.from_pretrained(meant, tmp_path / "adapter").merge_and_unload()
    async with opened(path, gptq_kernel="torch", adapters={"x": tmp_path / "adapter"}) as engine:
        got = await answer(engine, asking(adapter="x", max_tokens=6, ignore_eos=True))
        assert engine._loaded.generation is not None
        model = engine._loaded.generation._runner._model  # type: ignore[attr-defined]
        assert not any(isinstance(layer, FusedLayer) for layer in model.model.layers)
    with torch.inference_mode():
        logprobs = merged(torch.tensor([[5, 6, 7, *got.ids]])).logits[0].log_softmax(-1)
    for place, token in enumerate(got.ids, 2):
        assert logprobs[place, token] >= logprobs[place].max() - 0.02


@pytest.mark.parametrize(
    ("method", "library", "extra"),
    [
        ("gptq", "gptqmodel and optimum", "gptq"),
        ("awq", "gptqmodel", "gptq"),
        ("compressed-tensors", "compressed_tensors", "compressed-tensors"),
    ],
)
async def test_a_missing_library_is_named_with_its_extra(
    opened: Opened, stored: Stored, monkeypatch: pytest.MonkeyPatch, method: str, library: str, extra: str
) -> None:
    path, _ = stored(method)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StartupError, match=rf"is quantised \({method}\) and needs {library}: .*-hf\[{extra}\]"):
        async with opened(path):
            pass


async def test_what_does_not_go_with_a_quantised_checkpoint_is_refused(
    opened: Opened, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stored("gptq")
    with pytest.raises(StartupError, match=r"quantised already \(gptq\); leave out `quantization`"):
        async with opened(path, quantization="bitsandbytes-4bit"):
            pass
    with pytest.raises(StartupError, match="gptq_kernel is for GPTQ and AWQ checkpoints; this one is not quantised"):
        async with opened(gptq_kernel="marlin"):
            pass


@pytest.mark.parametrize(
    ("method", "kernel", "backend"),
    [
        ("gptq", "auto", None),
        ("gptq", "exllama_v2", "exllama_v2"),
        ("awq", "exllama_v2", "exllama_v2"),
        ("awq", "triton", "gemm_triton"),
    ],
)
def test_the_kernel_is_handed_on(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, method: str, kernel: str, backend: str | None
) -> None:
    """As far as can be seen without a GPU, on which these run."""
    monkeypatch.setattr(quantization, "_require", lambda *_: None)
    checkpoint = opened_checkpoint(stored(method)[0])
    prepare_stored(checkpoint, HfOptions(gptq_kernel=kernel), CPU)  # type: ignore[arg-type]
    assert checkpoint.config.quantization_config.get("backend") == backend  # type: ignore[attr-defined]


def test_memory_is_estimated_by_what_the_weights_take_once_they_are_loaded(stored: Stored, folder: Folder) -> None:
    layers = sum(tensor.numel() for name, tensor in tiny_models.llama().state_dict().items() if "_proj.weight" in name)
    plain = open_checkpoint(str(folder("llama")), revision=None, trust_remote_code=False, progress=lambda *_: None)
    others = plain.weights_bytes(4) - 4 * layers
    for method, per_number, on_a_gpu in (("gptq", 0.7, 0.7), ("compressed-tensors", 4, 4), ("fp8", 4, 1)):
        checkpoint = opened_checkpoint(stored(method)[0])
        for device, expected in ((CPU, per_number), (torch.device("cuda"), on_a_gpu)):
            bits = unpacked_bits(checkpoint, device)  # type: ignore[arg-type]
            took = checkpoint.weights_bytes(4, unpacked_bits=bits)  # type: ignore[attr-defined]
            assert took - others == pytest.approx(expected * layers, rel=0.2), (method, device)


async def test_too_little_memory_is_seen_beforehand(
    opened: Opened, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_require", lambda *_: None)
    path, _ = stored("compressed-tensors")
    monkeypatch.setattr(devices, "_free_host_memory", lambda: 400_000)  # enough for what lies in the file
    with pytest.raises(StartupError, match="not enough memory"):
        async with opened(path):
            pass
