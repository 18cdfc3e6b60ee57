"""The page for those who come from FastChat has all of its loader flags, and names only keys that exist."""

from __future__ import annotations

import re

import msgspec
import pytest
from msgspec import Struct

from fastchat_serve import config
from tests.docs.backends_here import REPOSITORY, backends

PAGE = (REPOSITORY / "src/fastchat_serve/docs/fastchat-flags.md").read_text(encoding="utf-8")

FLAGS = re.findall(
    r"\S+",
    """
--host --port --worker-address --controller-address --model-names --conv-template --embed-in-truncate
--limit-worker-concurrency --stream-interval --no-register --seed --debug --ssl
--model-path --revision --device --gpus --num-gpus --max-gpu-memory --dtype --load-8bit --cpu-offloading
--gptq-ckpt --gptq-wbits --gptq-groupsize --gptq-act-order --awq-ckpt --awq-wbits --awq-groupsize
--enable-exllama --exllama-max-seq-len --exllama-gpu-split --exllama-cache-8bit
--enable-xft --xft-max-seq-len --xft-dtype
CPU_ISA PEFT_SHARE_BASE_WEIGHTS FASTCHAT_WORKER_API_TIMEOUT FASTCHAT_WORKER_API_EMBEDDING_BATCH_SIZE
FASTCHAT_USE_MODELSCOPE
multi_model_worker vllm_worker sglang_worker mlx_worker huggingface_api_worker lightllm_worker dashinfer_worker
""",
)
"""Of FastChat's model workers, in the order of its ``model_worker.py`` and ``model_adapter.py``; then the variables of
their environment, and the workers with engines of their own."""

TABLES: dict[str, type[Struct]] = {
    "api": config.Api,
    "cluster": config.Cluster,
    "controller": config.Controller,
    "limits": config.Limits,
    "server": config.Server,
    "worker": config.Worker,
}


def rows() -> list[tuple[list[str], list[str]]]:
    """Of each row, what is marked as code in its first two cells."""
    lines = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", first), re.findall(r"`([^`]+)`", second)) for first, second, *_ in lines]


def test_every_flag_is_in_one_row() -> None:
    documented = [flag for flags, _ in rows() for flag in flags]
    assert sorted(documented) == sorted(FLAGS)


@pytest.mark.parametrize("key", sorted({key for _, keys in rows() for key in keys}))
def test_every_key_that_the_page_names_exists(key: str) -> None:
    table, _, name = key.rpartition(".")
    options = {name: backend.options for name, backend in backends().items()}
    assert name in {field.encode_name for field in msgspec.structs.fields((TABLES | options)[table])}


def test_a_flag_without_a_key_says_what_to_do_instead() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| `") and " | — | " in line:
            assert len(line.rsplit(" | ", 1)[1]) > len("See x below. |")
