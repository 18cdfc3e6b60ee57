"""What SGLang is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastchat_backend_sglang import SglangOptions
from fastchat_backend_sglang.arguments import SPARE_TOKENS, server_args
from fastchat_backend_sglang.capabilities import CAPABILITIES, capabilities
from fastchat_serve import Capability, ConfigError

KNOWN = ("schedule_policy", "tp_size", "model_path")


def started_with(device: str = "cuda", **options: Any) -> dict[str, Any]:
    return server_args(
        Path("model"), SglangOptions(**options), device=device, context_length=1000, amx=False, known=KNOWN
    )


def test_options_reach_sglang_under_its_own_names() -> None:
    arguments = started_with(
        tp_size=2, max_batch=7, kv_cache_tokens=512, quantization="fp8", adapters={"a": Path("adapter")}
    )
    assert arguments["model_path"] == "model"
    assert arguments["context_length"] == 1000 + SPARE_TOKENS
    assert (arguments["tp_size"], arguments["max_running_requests"], arguments["max_total_tokens"]) == (2, 7, 512)
    assert (arguments["quantization"], arguments["lora_paths"]) == ("fp8", {"a": "adapter"})


def test_what_is_not_set_is_left_to_sglang() -> None:
    assert not started_with().keys() & {"quantization", "mem_fraction_static", "attention_backend", "max_total_tokens"}


def test_a_cpu_gets_what_runs_there_unless_something_else_is_set() -> None:
    assert started_with("cpu")["grammar_backend"] == "llguidance"
    assert started_with("cpu")["attention_backend"] == "torch_native"
    assert started_with("cpu", grammar_backend="none", kv_cache_tokens=512)["max_total_tokens"] == 512


def test_embeddings_are_never_cached_for_others_to_find() -> None:
    assert not started_with()["disable_radix_cache"]
    assert started_with(task="embed")["disable_radix_cache"]
    assert started_with(prefix_cache=False)["disable_radix_cache"]


def test_extra_arguments_are_handed_on() -> None:
    assert started_with(extra={"schedule_policy": "lpm"})["schedule_policy"] == "lpm"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("schedul_policy", "did you mean schedule_policy"),
        ("model_path", "sets this itself"),
        ("tp_size", "write it outside of extra"),
    ],
)
def test_extra_arguments_that_cannot_be_are_refused(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        started_with(extra={name: 1})


def test_seeds_hold_only_in_deterministic_engines_which_have_no_min_p() -> None:
    def can(**options: Any) -> frozenset[Capability]:
        return capabilities(SglangOptions(**options), chat=True, tools=True, constraints=True)

    assert Capability.SEED not in can()
    assert Capability.MIN_P in can()
    assert Capability.SEED in can(deterministic=True)
    assert Capability.MIN_P not in can(deterministic=True)
    assert can() | can(task="embed") | can(deterministic=True, adapters={"a": Path("a")}) == CAPABILITIES
