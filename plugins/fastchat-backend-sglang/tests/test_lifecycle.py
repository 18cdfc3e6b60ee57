"""Engines that are opened, broken, closed and opened again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sglang_answers import ENDLESS, Opened, answer, asking, opened_on, read, until

from fastchat_backend_sglang import SglangOptions
from fastchat_backend_sglang.engine import SglangEngine
from fastchat_serve import (
    Capability,
    EmbedRequest,
    EngineError,
    EngineSetup,
    InvalidRequest,
    StartupError,
    TextPrompt,
    TokenPrompt,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

SEEN_WITHIN_S = 5.0
"""It takes a tenth of a second where nothing else runs."""
CLOSED_WITHIN_S = 10.0


def parts(kind: str) -> list[psutil.Process]:
    """SGLang's processes of a `kind` below this one."""
    return [child for child in psutil.Process().children(recursive=True) if kind in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """The processes below this one are as before afterwards."""

    def living() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True) if _alive(child)}

    before = living()
    yield
    assert living() <= before


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("victim", ["sglang::scheduler", "sglang::detokenizer", "fastchat_backend_sglang.host"])
async def test_a_process_that_is_killed_ends_all_answers_and_nothing_else(opened: Opened, victim: str) -> None:
    others = {process.pid for process in parts(victim)}
    async with nothing_left():
        async with opened() as engine:
            answers = [asyncio.create_task(answer(engine, asking(**ENDLESS))) for _ in range(3)]
            await until(lambda: engine.current_load().running == 3)
            (process,) = [process for process in parts(victim) if process.pid not in others]

            process.send_signal(signal.SIGKILL)
            await until(lambda: engine.fatal_error is not None, within_s=SEEN_WITHIN_S)

            ends = await asyncio.gather(*answers, return_exceptions=True)
            assert [type(end) for end in ends] == [EngineError] * 3
            with pytest.raises(EngineError):
                await answer(engine, asking())
            with pytest.raises(EngineError):
                await engine.tokenize(TextPrompt("x"))
            began = time.monotonic()
        assert time.monotonic() - began < CLOSED_WITHIN_S


async def test_a_closed_engine_can_be_opened_again(demo: Path, opened: Opened) -> None:
    engine = SglangEngine(EngineSetup(str(demo), SglangOptions(device="cpu", dtype="float32"), lambda *_: None))
    texts = []
    async with nothing_left():
        for _ in range(2):
            async with engine:
                texts.append((await answer(engine, asking())).text)
                closed_on = asyncio.create_task(answer(engine, asking(**ENDLESS)))
                await until(lambda: engine.current_load().running == 1)
                began = time.monotonic()
            assert time.monotonic() - began < CLOSED_WITHIN_S
            assert (await asyncio.gather(closed_on, return_exceptions=True))[0].__class__.__name__ == "Unavailable"
    assert texts[0] == texts[1]


async def test_giving_up_while_loading_leaves_nothing_behind(demo: Path, opened: Opened) -> None:
    stages: list[str] = []
    engine = SglangEngine(
        EngineSetup(str(demo), SglangOptions(device="cpu"), lambda stage, _=None: stages.append(stage))
    )
    async with nothing_left():
        opening = asyncio.create_task(engine.__aenter__())
        await until(lambda: "loading the model" in stages, within_s=120)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


async def test_the_server_leaves_and_its_hosts_follow(demo: Path, opened: Opened, tmp_path: Path) -> None:
    """Killed, a server cannot close anything."""
    program = tmp_path / "server.py"
    program.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from sglang_answers import opened_on\n"
        "async def main():\n"
        f"    async with opened_on(Path({str(demo)!r}))() as engine:\n"
        "        print(engine._process.pid, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    server = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    async with asyncio.timeout(180):
        host = psutil.Process(int(await server.stdout.readline()))
    everyone = [host, *host.children(recursive=True)]
    server.kill()
    await server.wait()
    await until(lambda: not any(_alive(process) for process in everyone))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"extra": {"schedul_policy": "lpm"}}, "did you mean schedule_policy"),
        ({"attention_backend": "nonsense"}, "nonsense"),
        ({"adapters": {"a": Path("nowhere")}}, "adapter_config.json"),
        ({"chat_template": Path("nowhere.jinja")}, "no such chat template"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_an_operator_got_wrong_is_said(opened: Opened, options: dict[str, Any], problem: str) -> None:
    async with nothing_left():
        with pytest.raises(StartupError, match=problem):
            async with opened(**options):
                pass


async def test_no_model_no_engine(opened: Opened) -> None:
    with pytest.raises(StartupError, match="no such model folder"):
        async with opened_on(Path("/nowhere/at/all"))():
            pass


async def test_a_small_cache_is_a_small_context(opened: Opened) -> None:
    async with opened(kv_cache_tokens=128, prefix_cache=False, grammar_backend="none") as engine:
        assert engine.info.context_length == 120
        assert "the key-value cache holds 120 tokens" in " ".join(engine.info.notes)
        assert Capability.REGEX not in engine.info.capabilities
        first, again = [await answer(engine, asking(max_tokens=20)) for _ in range(2)]
        assert first.token_ids == again.token_ids
        assert again.usage.cached_tokens == 0
        full = await answer(engine, asking(prompt=TokenPrompt((22,) * 110), max_tokens=10, ignore_eos=True))
        assert len(full.token_ids) == 10


async def test_embeddings_have_length_one_and_tell_texts_apart(opened: Opened) -> None:
    numpy = pytest.importorskip("numpy")
    async with opened(task="embed") as engine:
        assert engine.info.capabilities == {Capability.EMBED, Capability.TOKENIZE}
        inputs = (TextPrompt("hello world"), TextPrompt("goodbye"), TokenPrompt((5, 6)), TextPrompt("hello world"))
        found = await engine.embed(EmbedRequest(id="e", inputs=inputs))
        rows = numpy.frombuffer(found.data, "<f4").reshape(len(inputs), found.dimensions)
        assert numpy.allclose((rows * rows).sum(1), 1, atol=1e-5)
        assert numpy.allclose(rows[0], rows[3], atol=1e-5)
        assert not numpy.allclose(rows[0], rows[1], atol=1e-2)
        with pytest.raises(InvalidRequest):
            await engine.embed(EmbedRequest(id="e", inputs=(TokenPrompt((5,) * 2049),)))
        given_up = asyncio.create_task(engine.embed(EmbedRequest(id="e", inputs=(TokenPrompt((5,) * 2000),) * 8)))
        await asyncio.sleep(0)
        given_up.cancel()
        again = await engine.embed(EmbedRequest(id="e", inputs=(TokenPrompt((5,) * 3000),), truncate=True))
        assert again.prompt_tokens == 2048


async def test_adapters_answer_beside_the_model_and_each_other(opened: Opened, demo: Path, tmp_path: Path) -> None:
    adapters = {name: make_adapter(tmp_path / name, demo, seed) for seed, name in enumerate(("a", "b"))}
    async with opened(adapters=adapters) as engine:
        assert engine.info.adapters == ("a", "b")
        names = (None, "a", "b")
        alone = [(await answer(engine, asking(adapter=name))).token_ids for name in names]
        assert len(set(alone)) == 3
        at_once = await asyncio.gather(*(answer(engine, asking(adapter=name)) for name in names * 2))
        assert [each.token_ids for each in at_once] == alone * 2
        await read(engine, asking(adapter="a", **ENDLESS), 2)
        assert (await answer(engine, asking(adapter="a"))).token_ids == alone[1]


def make_adapter(folder: Path, model: Path, seed: int) -> Path:
    """A random LoRA adapter, strong enough to change every answer."""
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    config = json.loads((model / "config.json").read_text())
    hidden, size = config["hidden_size"], config["head_dim"]
    widths = {"q_proj": config["num_attention_heads"] * size, "v_proj": config["num_key_value_heads"] * size}
    source = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in widths.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(8, hidden, generator=source) * 0.3
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(width, 8, generator=source) * 0.3
    folder.mkdir()
    safetensors.save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": list(widths), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "CAUSAL_LM"}))
    return folder


async def test_loading_leaves_the_loop_free(opened: Opened) -> None:
    before = signal.getsignal(signal.SIGQUIT)  # ignored already where a shell started us in the background
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    watching = asyncio.create_task(watch())
    async with opened():
        watching.cancel()
    assert longest < 0.5
    assert "sglang" not in sys.modules
    assert signal.getsignal(signal.SIGQUIT) == before
