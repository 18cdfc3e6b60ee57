"""Opening a model: what is read from its files, and what is said when that cannot be done."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anyio
import msgspec
import pytest
import safetensors.torch
import tiny_models
import torch
import transformers
from hf_answers import Folder, Opened, answer, asking
from huggingface_hub.errors import LocalEntryNotFoundError

import fastchat_backend_hf
from fastchat_backend_hf import HfOptions, devices, open_hf, remarks, weights
from fastchat_backend_hf.batch_runner import BatchRunner
from fastchat_backend_hf.context import model_context_length
from fastchat_backend_hf.devices import bfloat16_instructions, parse_bytes, pick_device, pick_dtype, pick_threads
from fastchat_serve import (
    Capability,
    ChatPrompt,
    EngineSetup,
    InvalidRequest,
    Message,
    SamplingParams,
    StartupError,
    TextPrompt,
)
from fastchat_serve.checkpoint import fingerprint

pytestmark = pytest.mark.anyio

Edited = Callable[..., Path]


@pytest.fixture
def edited(folder: Folder, tmp_path: Path) -> Edited:
    """``edited("llama", {"config.json": {...}})``: a copy with keys changed; None removes a key or a file."""

    def edited(model: str, changes: dict[str, dict[str, object] | str | None]) -> Path:
        path = tmp_path / model
        shutil.copytree(folder(model), path)
        for name, change in changes.items():
            file = path / name
            if change is None:
                file.unlink()
            elif isinstance(change, str):
                file.write_text(change)
            else:
                merged = json.loads(file.read_text()) | change
                file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
        return path

    return edited


async def open_and_close(opened: Opened, model: str | Path, **options: object) -> None:
    async with opened(model, **options):
        pass


def test_the_hook_registers_the_engine_without_importing_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fastchat_backend_hf as b; found = {};"
        "b.register_engines(lambda name, factory, **more: found.update({name: (factory, more)}));"
        "assert found['hf'] == (b.open_hf, {'contract': 1, 'options': b.HfOptions, 'capabilities': b.CAPABILITIES});"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert fastchat_backend_hf.__all__ == ["CAPABILITIES", "HfOptions", "open_hf", "register_engines"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "gpu"},
        {"dtype": "int8"},
        {"max_batch": 0},
        {"kv_cache_bytes": "2 apples"},
        {"tempo": 1},
        {"pooling": "max"},
        {"max_memory": {"0": "1GiB"}},
        {"device_map": "auto", "max_memory": {"gpu": "1GiB"}},
        {"kv_cache_tokens": 100, "kv_cache_bytes": "1GiB"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, HfOptions)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"config.json": None}, "no config.json"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": {"model_type": "no-such-thing", "architectures": None}}, "cannot be used"),
        ({"config.json": {"architectures": ["LlamaForSequenceClassification"]}}, "neither a causal language model"),
        ({"model.safetensors": None}, "no weights"),
        ({"model.safetensors": "not a tensor"}, "no safetensors file"),
        ({"tokenizer.json": None, "tokenizer_config.json": None}, "tokenizer"),
        ({"tokenizer_config.json": {"chat_template": "{% if %}"}, "chat_template.jinja": "{% if %}"}, "template"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_broken_folder_is_refused_with_the_reason(
    opened: Opened, edited: Edited, changes: dict[str, dict[str, object] | str | None], problem: str
) -> None:
    with pytest.raises(StartupError, match=problem):
        await open_and_close(opened, edited("llama", changes))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "cuda:7"}, "not here"),
        ({"quantization": "bitsandbytes-4bit"}, r"fastchat-backend-hf\[bitsandbytes\]"),
        ({"quantization": "torchao-int8"}, r"fastchat-backend-hf\[torchao\]"),
        ({"lora": Path("/no/such/adapter")}, "LoRA|peft"),
        ({"chat_template": Path("/no/such/template.jinja")}, "no such chat template"),
        ({"kv_cache_tokens": None, "kv_cache_bytes": "100B"}, "key-value cache"),
        ({"device_map": "auto", "max_memory": {"cpu": "1KiB"}}, "not enough memory"),
    ],
    ids=str,
)
async def test_options_that_cannot_be_met_are_refused_with_what_to_change(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], problem: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)  # as if no extra were installed
    with pytest.raises(StartupError, match=problem):
        await open_and_close(opened, "llama", **options)


async def test_a_model_too_big_for_the_memory_is_refused_before_it_is_loaded(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "free_memory", lambda device: 1000)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(StartupError, match=r"not enough memory.*float32.*cpu"):
        await open_and_close(opened, "llama")


async def test_memory_that_runs_out_while_loading_says_so(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(StartupError, match="not enough memory"):
        await open_and_close(opened, "llama")


async def test_no_such_folder_is_said_without_asking_the_hub(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no such model folder"):
        await open_and_close(opened, tmp_path / "nothing")


async def test_an_unknown_hub_id_offline_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    engine = open_hf(EngineSetup("nobody/no-such-model", HfOptions(), lambda *_: None))
    with pytest.raises(StartupError, match="nobody/no-such-model"):
        await engine.__aenter__()


async def test_a_folder_never_touches_the_network(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    async with opened() as engine:
        assert (await answer(engine, asking())).ids


async def test_a_hub_model_is_downloaded_once_and_then_is_a_folder(
    opened: Opened, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in for the hub's client, since tests touch no network."""
    asked: list[dict[str, object]] = []

    def download(model: str, **settings: object) -> str:
        asked.append({"model": model, **settings})
        return str(folder("llama"))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files",
        lambda self, model, revision: ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.bin"],
    )
    async with open_hf(
        EngineSetup("someone/some-model", HfOptions(device="cpu", revision="v2"), lambda *_: None)
    ) as engine:
        assert engine.info.context_length == 512
    (call,) = asked
    assert (call["model"], call["revision"]) == ("someone/some-model", "v2")
    patterns = call["allow_patterns"]
    assert isinstance(patterns, list)
    assert "*.safetensors" in patterns
    assert not {"*.bin", "*.py"} & set(patterns), "neither pickles beside safetensors, nor code"


async def test_a_hub_model_that_was_downloaded_before_needs_no_network(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client raises its HTTP library's own errors, which are no `OSError`."""

    class ConnectError(Exception):
        pass

    def unreachable(self: object, model: str, revision: str | None) -> list[str]:
        raise ConnectError("Temporary failure in name resolution")

    def cached(model: str, *, revision: str | None, local_files_only: bool) -> str:
        if model != "someone/cached":
            raise LocalEntryNotFoundError("not there")
        return str(folder("llama"))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)

    async with open_hf(EngineSetup("someone/cached", HfOptions(device="cpu"), lambda *_: None)) as engine:
        assert engine.info.context_length == 512
    with pytest.raises(
        StartupError, match=r"no folder 'demoo' here, and downloading it failed: Temporary .*\. Check its spelling"
    ):
        async with open_hf(EngineSetup("demoo", HfOptions(device="cpu"), lambda *_: None)):
            pass


async def test_what_the_hubs_client_has_to_say_is_logged_and_not_printed_as_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    printed = io.StringIO()
    hub = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(hub, "handlers", [logging.StreamHandler(printed)])

    def unreachable(model: str, **settings: object) -> str:
        hub.warning("Retrying in 8s [Retry 5/5].")
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(StartupError, match="cannot be reached"):
        async with open_hf(EngineSetup("someone/absent", HfOptions(device="cpu"), lambda *_: None)):
            pass
    assert caplog.messages == ["Retrying in 8s [Retry 5/5]."]
    assert printed.getvalue() == ""


async def test_weights_that_lack_tensors_are_refused(opened: Opened, edited: Edited) -> None:
    path = edited("llama", {})
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StartupError, match=r"lack 1 tensors.*up_proj"):
        await open_and_close(opened, path)


async def test_progress_is_told_while_loading(folder: Folder) -> None:
    told: list[tuple[str, float | None]] = []
    setup = EngineSetup(
        str(folder("llama")), HfOptions(device="cpu"), lambda stage, fraction=None: told.append((stage, fraction))
    )
    async with open_hf(setup):
        pass
    fractions = [fraction for stage, fraction in told if stage == "loading weights" and fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert len(fractions) > 3


async def test_loading_that_is_given_up_ends_at_its_next_step(folder: Folder) -> None:
    """So that SIGTERM need not wait for all of a large model."""
    told: list[str] = []
    loop, scope, seen = asyncio.get_running_loop(), anyio.CancelScope(), threading.Event()

    def give_up() -> None:
        scope.cancel()
        after_turns(10)

    def after_turns(turns: int) -> None:
        """The engine learns of it within a few turns of the loop."""
        if turns:
            loop.call_soon(after_turns, turns - 1)
        else:
            seen.set()

    def report(stage: str, fraction: float | None = None) -> None:
        told.append(stage)
        if stage == "reading the tokenizer" and not seen.is_set():
            loop.call_soon_threadsafe(give_up)
            assert seen.wait(10)

    with scope:
        async with open_hf(EngineSetup(str(folder("llama")), HfOptions(device="cpu"), report)):
            pytest.fail("it was given up")
    assert scope.cancelled_caught
    assert "checking the model" not in told
    async with open_hf(EngineSetup(str(folder("llama")), HfOptions(device="cpu"), report)) as engine:
        assert engine.info.context_length


async def test_capabilities_say_what_the_model_can_do(opened: Opened, edited: Edited) -> None:
    async with opened() as engine:
        assert engine.info.capabilities >= {Capability.CHAT, Capability.TOOLS, Capability.EMBED, Capability.CHOICE}
        assert Capability.ADAPTERS not in engine.info.capabilities
        assert (engine.info.dtype, engine.info.device) == ("float32", "cpu")
    bare = edited("llama", {"tokenizer_config.json": {"chat_template": None}, "chat_template.jinja": None})
    async with opened(bare) as engine:
        assert not {Capability.CHAT, Capability.TOOLS} & engine.info.capabilities
    (bare / "own.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    async with opened(bare, chat_template=bare / "own.jinja") as engine:
        assert Capability.CHAT in engine.info.capabilities
        assert Capability.TOOLS not in engine.info.capabilities
        assert await engine.render(ChatPrompt((Message(role="user", content="x"),))) == "[x]"


async def test_what_the_models_makers_advise_is_passed_on_unless_it_is_not_wanted(
    opened: Opened, edited: Edited
) -> None:
    folder = edited("llama", {"generation_config.json": {"do_sample": True, "temperature": 0.3, "top_k": 20}})

    async with opened(folder) as engine:
        assert engine.info.sampling == SamplingParams(temperature=0.3, top_k=20)
    async with opened(folder, generation_config=False) as engine:
        assert engine.info.sampling == SamplingParams()
    async with opened() as engine:
        assert engine.info.sampling == SamplingParams()


async def test_a_request_sets_only_the_template_variables_that_the_config_allows(
    opened: Opened, edited: Edited
) -> None:
    folder = edited("llama", {"chat_template.jinja": "{{ 'loud' if shout else 'quiet' }}"})

    def asked(**variables: object) -> ChatPrompt:
        return ChatPrompt((Message(role="user", content="x"),), template_options=variables)

    async with opened(folder, chat_template_kwargs={"shout": "bool"}) as engine:
        assert await engine.render(asked(shout=True)) == "loud"
        for refused in ({"shout": 1}, {"whisper": True}):
            with pytest.raises(InvalidRequest):
                await engine.render(asked(**refused))


async def test_every_stop_token_of_model_and_tokenizer_counts(opened: Opened, edited: Edited) -> None:
    async with opened() as engine:
        greedy = (await answer(engine, asking(max_tokens=20, ignore_eos=True))).ids
    several = edited("llama", {"generation_config.json": {"eos_token_id": [greedy[6], 900]}})
    async with opened(several) as engine:
        got = await answer(engine, asking(max_tokens=20))
    assert got.ids == greedy[: greedy.index(greedy[6]) + 1]
    assert got.last.stop_match == greedy[6]


async def test_the_cache_bound_limits_the_context(opened: Opened) -> None:
    async with opened(kv_cache_tokens=64) as engine:
        assert engine.info.context_length == 64
        assert any("64 tokens" in note for note in engine.info.notes)
        assert len((await answer(engine, asking(max_tokens=None, ignore_eos=True))).ids) == 61
    async with opened(kv_cache_tokens=None, kv_cache_bytes="64KiB") as engine:
        # 2 layers, keys and values, 2 heads of 16 numbers of 4 bytes: 512 bytes a token
        assert engine.info.context_length == 128


async def test_remote_code_is_off_and_noted_when_on(opened: Opened) -> None:
    """Reliability S7."""
    async with opened() as engine:
        assert engine.info.notes == ()
    async with opened(trust_remote_code=True) as engine:
        assert "trust_remote_code" in engine.info.notes[0]


async def test_half_precision_works_and_says_what_it_runs_on(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(dtype="float16") as engine:
        assert engine.info.notes == (
            "this processor has no instructions for float16, which makes it slower than float32",
        )
    monkeypatch.setattr(remarks, "bfloat16_instructions", lambda: "AMX")
    async with opened(dtype="bfloat16") as engine:
        assert engine.info.dtype == "bfloat16"
        assert engine.info.notes == ("bfloat16 on the CPU's AMX",)
        got = await answer(engine, asking(temperature=1.0, seed=1, max_tokens=10, logprobs=1, ignore_eos=True))
    assert len(got.ids) == 10


@pytest.mark.parametrize(
    ("config", "tokenizer_limit", "encoder", "expected"),
    [
        ({"max_position_embeddings": 4096}, None, False, 4096),
        ({"max_position_embeddings": 4096}, 1024, False, 4096),
        ({"max_position_embeddings": 514}, 512, True, 512),
        ({"n_positions": 1024}, None, False, 1024),
        ({}, 2048, False, 2048),
        ({}, 10**30, False, None),
        ({}, None, True, None),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            None,
            False,
            131072,
        ),
        (
            {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            None,
            False,
            16384,
        ),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            None,
            False,
            131072,
        ),
        (
            {
                "max_position_embeddings": 163840,
                "rope_parameters": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096},
            },
            None,
            False,
            163840,
        ),
        (
            {"max_position_embeddings": 131072, "rope_parameters": {"full_attention": {"factor": 8.0}}},
            None,
            False,
            131072,
        ),
    ],
    ids=str,
)
def test_the_context_length_is_read_right(
    config: dict[str, object], tokenizer_limit: int | None, encoder: bool, expected: int | None
) -> None:
    assert model_context_length(SimpleNamespace(**config), tokenizer_limit, encoder=encoder) == expected


def test_fingerprints_tell_weights_and_tokenizers_apart(folder: Folder, edited: Edited) -> None:
    original = fingerprint([folder("llama")], "float32")
    copy = edited("llama", {})
    assert fingerprint([copy], "float32") == original
    assert fingerprint([copy], "bfloat16") != original
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint([copy], "float32") != original
    weights.write_bytes((folder("llama") / "model.safetensors").read_bytes())
    assert fingerprint([copy], "float32") == original
    for name in ("tokenizer.json", "tokenizer_config.json"):
        before = (copy / name).read_text()
        (copy / name).write_text(before + " ")
        assert fingerprint([copy], "float32") != original, "an answer begun elsewhere had another prompt, or other ends"
        (copy / name).write_text(before)
    assert fingerprint([copy], "float32") == original


async def test_another_chat_template_makes_another_fingerprint(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    async with opened() as engine, opened(chat_template=tmp_path / "own.jinja") as other:
        assert engine.info.fingerprint != other.info.fingerprint


@pytest.mark.parametrize(
    ("has", "limit", "expected"),
    [
        (("amx_bf16", "avx512_bf16"), "", "AMX"),
        (("avx512_bf16",), "", "AVX512-BF16"),
        ((), "", None),
        (("amx_bf16", "avx512_bf16"), "AVX512_CORE_AMX", "AMX"),
        (("amx_bf16", "avx512_bf16"), "avx512_core_bf16", "AVX512-BF16"),
        (("amx_bf16", "avx512_bf16"), "AVX512_CORE", None),
    ],
)
def test_bfloat16_is_as_fast_as_processor_and_environment_let_it_be(
    monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], limit: str, expected: str | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bfloat16_instructions() == expected


def test_devices_types_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_dtype("auto", torch.float32, cpu) == pick_dtype("auto", torch.float16, cpu) == torch.float32
    for fast, expected in ((None, torch.float32), ("AMX", torch.bfloat16)):
        monkeypatch.setattr(devices, "bfloat16_instructions", lambda fast=fast: fast)
        assert pick_dtype("auto", torch.bfloat16, cpu) == expected
    assert pick_dtype("auto", torch.bfloat16, torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("float16", torch.bfloat16, cpu) == torch.float16
    assert parse_bytes("2GiB") == 2 * 2**30
    assert parse_bytes("1.5 MB") == 3 * 2**19
    assert pick_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert pick_threads(0) == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert pick_threads(0) >= 1


@pytest.mark.parametrize("quantization", ["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"])
async def test_quantised_weights_generate(opened: Opened, quantization: str) -> None:
    pytest.importorskip(quantization.partition("-")[0])
    async with opened(quantization=quantization) as engine:
        got = await answer(engine, asking(max_tokens=10, ignore_eos=True))
        assert len(got.ids) == 10
        assert engine._loaded.generation is not None
        model = engine._loaded.generation._runner._model  # type: ignore[attr-defined]
        assert type(model.model.layers[0].mlp.up_proj.weight).__name__ != "Parameter"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
async def test_a_lora_folder_is_merged(opened: Opened, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_models.llama()
    torch.manual_seed(3)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    )
    adapted.save_pretrained(tmp_path / "lora")
    with torch.inference_mode():
        expected = adapted.generate(
            input_ids=torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), do_sample=False, max_new_tokens=12
        )
    async with opened() as engine:
        plain = (await answer(engine, asking(max_tokens=12)), engine.info.fingerprint)
    async with opened(lora=tmp_path / "lora") as engine:
        got = await answer(engine, asking(max_tokens=12))
        assert engine.info.fingerprint != plain[1]
    assert got.ids == expected[0, 3:].tolist()
    assert got.ids != plain[0].ids


async def test_the_batch_is_used_by_default(opened: Opened) -> None:
    async with opened() as engine:
        assert engine._loaded.generation is not None
        assert isinstance(engine._loaded.generation._runner, BatchRunner)
        assert await engine.tokenize(TextPrompt("Return")) == await engine.tokenize(TextPrompt("Return"))
