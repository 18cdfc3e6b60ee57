"""What becomes of the options. Needs no vLLM."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastchat_backend_vllm import VllmOptions
from fastchat_backend_vllm.arguments import engine_arguments, size_in_bytes
from fastchat_backend_vllm.environment import vllm_environment
from fastchat_serve import ConfigError, StartupError

KNOWN = {"model", "dtype", "block_size", "disable_log_stats", "max_model_len", "speculative_config"}


def arguments(cpu_kv_bytes: int | None = None, **options: Any) -> dict[str, Any]:
    return engine_arguments("m", VllmOptions(**options), KNOWN, cpu_kv_bytes=cpu_kv_bytes)


def test_what_is_not_set_is_left_to_vllm() -> None:
    assert {"max_model_len", "max_num_seqs", "quantization", "enable_lora", "kv_cache_memory_bytes"}.isdisjoint(
        arguments()
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 111),
        ({"kv_cache_memory": "2GiB"}, 2 * 2**30),
        ({"kv_cache_memory": "2GiB", "gpu_memory_utilization": 0.5}, 2 * 2**30),
        ({"gpu_memory_utilization": 0.5}, None),
    ],
)
def test_a_default_cache_size_gives_way_to_what_is_set(options: dict[str, Any], expected: int | None) -> None:
    assert arguments(111, **options).get("kv_cache_memory_bytes") == expected


@pytest.mark.parametrize(("size", "expected"), [("512MiB", 2**29), ("1.5 GB", 3 * 2**29), ("7B", 7)])
def test_sizes_are_read_in_powers_of_1024(size: str, expected: int) -> None:
    assert size_in_bytes(size) == expected


def test_extra_arguments_reach_vllm_by_their_names() -> None:
    assert arguments(extra={"block_size": 32, "disable_log_stats": False}).items() >= {
        ("block_size", 32),
        ("disable_log_stats", False),
    }


def test_an_unknown_extra_argument_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"extra\.blocksize: .*'block_size'"):
        arguments(extra={"blocksize": 32})


@pytest.mark.parametrize("name", ["model", "max_model_len", "scheduling_policy"])
def test_an_extra_argument_cannot_say_otherwise_than_an_option(name: str) -> None:
    with pytest.raises(ConfigError, match=f"extra.{name}"):
        arguments(extra={name: 1})


@pytest.mark.parametrize(("rank", "expected"), [(1, 8), (8, 8), (9, 16), (200, 256)])
def test_the_lora_rank_is_the_next_that_vllm_has_kernels_for(tmp_path: Path, rank: int, expected: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))

    assert arguments(adapters={"a": tmp_path}).items() >= {
        ("enable_lora", True),
        ("max_loras", 1),
        ("max_lora_rank", expected),
    }


def test_on_a_cpu_one_lora_slot_stays_empty_for_requests_without_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')

    assert arguments(111, adapters={"a": tmp_path, "b": tmp_path}, max_loras=1)["max_loras"] == 3
    assert arguments(adapters={"a": tmp_path, "b": tmp_path}, max_loras=1)["max_loras"] == 1


@pytest.mark.parametrize("content", ["", "[]", '{"r": "8"}', '{"r": 100000}', None])
def test_an_adapter_that_cannot_be_read_is_a_start_up_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(StartupError, match="the adapter 'sql'"):
        arguments(adapters={"sql": tmp_path})


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    before = dict(os.environ)
    with vllm_environment(VllmOptions(kv_cache_memory="1GiB", cpu_threads_bind="0-3")):
        assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ
        assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
        os.environ["LD_PRELOAD"] = "what vLLM sets"

    assert dict(os.environ) == before
