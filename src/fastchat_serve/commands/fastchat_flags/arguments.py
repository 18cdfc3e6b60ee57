"""The flags of FastChat's controller, model worker and API server. As with these, any unique beginning of one will do.

What was not given is None: a flag at its default means nothing here.
"""

from __future__ import annotations

import argparse
import json
from types import MappingProxyType

__all__ = ["LOADER_FLAGS", "OTHER_FLAGS", "add_api", "add_controller", "add_message", "add_worker"]

CONTROLLER = "http://localhost:21001"

LOADER_FLAGS = MappingProxyType(
    {
        "revision": str,
        "device": str,
        "gpus": str,
        "num_gpus": int,
        "max_gpu_memory": str,
        "dtype": str,
        "load_8bit": None,
        "cpu_offloading": None,
        "gptq_ckpt": str,
        "gptq_wbits": int,
        "gptq_groupsize": int,
        "gptq_act_order": None,
        "awq_ckpt": str,
        "awq_wbits": int,
        "awq_groupsize": int,
        "enable_exllama": None,
        "exllama_max_seq_len": int,
        "exllama_gpu_split": str,
        "exllama_cache_8bit": None,
        "enable_xft": None,
        "xft_max_seq_len": int,
        "xft_dtype": str,
    }
)
"""Those that say how a model is loaded, and the type of what follows them; None: nothing does."""

OTHER_FLAGS = MappingProxyType(
    {
        "conv_template": str,
        "embed_in_truncate": None,
        "stream_interval": int,
        "seed": int,
    }
)
"""Of the worker; they have no counterpart in a config."""


def add_controller(parser: argparse.ArgumentParser) -> None:
    """Those of ``fastchat.serve.controller``."""
    _add_server(parser, 21001)
    parser.add_argument("--dispatch-method", choices=["lottery", "shortest_queue"], default="shortest_queue")
    _add_ours(parser)


def add_worker(parser: argparse.ArgumentParser) -> None:
    """Those of ``fastchat.serve.model_worker`` and of ``multi_model_worker``, which repeats some."""
    _add_server(parser, 21002)
    parser.add_argument("--worker-address", metavar="URL", help="where peers reach it (default: found out)")
    parser.add_argument("--controller-address", default=CONTROLLER, metavar="URL", help="default: %(default)s")
    parser.add_argument("--model-path", action="append", metavar="MODEL", help="may be repeated")
    parser.add_argument("--model-names", action="append", metavar="NAME,NAME", help="once for each --model-path")
    parser.add_argument("--limit-worker-concurrency", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--no-register", action="store_true")
    # FastChat took any value, "False" included, for true.
    parser.add_argument("--debug", nargs="?", const=True)
    for name, kind in (LOADER_FLAGS | OTHER_FLAGS).items():
        if kind is None:
            parser.add_argument(_flag(name), action="store_true", default=None)
        else:
            parser.add_argument(_flag(name), type=kind, metavar=kind.__name__.upper())
    parser.add_argument(
        "--backend", default="hf", metavar="NAME", help="the engine; no flag of FastChat's (default: hf)"
    )
    _add_ours(parser)


def add_api(parser: argparse.ArgumentParser) -> None:
    """Those of ``fastchat.serve.openai_api_server``."""
    _add_server(parser, 8000)
    parser.add_argument("--controller-address", default=CONTROLLER, metavar="URL", help="default: %(default)s")
    parser.add_argument("--api-keys", type=lambda text: text.split(","), metavar="KEY,KEY")
    parser.add_argument("--allowed-origins", type=json.loads, metavar="JSON_LIST")
    parser.add_argument("--allowed-methods", type=json.loads, metavar="JSON_LIST")
    parser.add_argument("--allowed-headers", type=json.loads, metavar="JSON_LIST")
    parser.add_argument("--allow-credentials", action="store_true", default=None)
    _add_ours(parser)


def add_message(parser: argparse.ArgumentParser) -> None:
    """Those of ``fastchat.serve.test_message``."""
    parser.add_argument("--controller-address", metavar="URL", help="ask this FastChat controller where the model is")
    parser.add_argument("--worker-address", metavar="URL", help="or talk to this FastChat worker")
    parser.add_argument("--model-name", required=True, metavar="NAME")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--message", default="Tell me a story with more than 1000 words.", metavar="TEXT")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_server(parser: argparse.ArgumentParser, port: int) -> None:
    parser.add_argument("--host", default="localhost", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=port, help="default: %(default)s")
    parser.add_argument("--ssl", action="store_true", help="with the files of SSL_KEYFILE and SSL_CERTFILE")


def _add_ours(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="set a key of the config that the flags mean; may be repeated",
    )
