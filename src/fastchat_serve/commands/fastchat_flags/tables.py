"""FastChat's flags and variables as tables of a config. Pure functions: nothing is read but their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastchat_serve.commands.fastchat_flags.arguments import LOADER_FLAGS, OTHER_FLAGS
from fastchat_serve.errors import StartupError

__all__ = ["UNUSED_VARIABLES", "Meaning", "api", "controller", "worker"]

Tables = dict[str, Any]

DEFAULT_MODEL = "lmsys/vicuna-7b-v1.5"
UNUSED_VARIABLES = (
    *("LOGDIR", "CPU_ISA", "PEFT_SHARE_BASE_WEIGHTS", "FASTCHAT_USE_MODELSCOPE"),
    "FASTCHAT_WORKER_API_EMBEDDING_BATCH_SIZE",
)
_OTHERS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "vllm": {"revision": "revision", "dtype": "dtype", "num_gpus": "tensor_parallel_size"},
        "sglang": {"revision": "revision", "dtype": "dtype", "num_gpus": "tp_size"},
        "mlx": {"revision": "revision", "dtype": "dtype"},
    }
)
"""Of backends that take few of the flags: the options that these are."""
_XFT_DTYPES = MappingProxyType(
    {
        "fp16": {"dtype": "float16"},
        "bf16": {"dtype": "bfloat16"},
        "int8": {"quantization": "torchao-int8"},
        "bf16_fp16": {"dtype": "bfloat16"},
        "bf16_int8": {"quantization": "torchao-int8"},
    }
)


class Meaning:
    """What flags mean.

    Attributes:
        tables: As a config has them.
        environ: Variables to set for the process.
        notes: What could not be carried over, a line each.
    """

    def __init__(self, args: argparse.Namespace, environ: Mapping[str, str]) -> None:
        server: Tables = {"host": args.host, "port": args.port}
        if args.ssl:
            for key, variable in (("tls_key", "SSL_KEYFILE"), ("tls_certificate", "SSL_CERTFILE")):
                if not environ.get(variable):
                    raise StartupError(f"--ssl: set {variable}.")
                server[key] = environ[variable]
        self.tables: Tables = {"server": server, "controller": {}, "api": {}, "fastchat": {"enabled": True}}
        self.environ: dict[str, str] = {}
        self.notes = [f"{name} is not used" for name in UNUSED_VARIABLES if environ.get(name)]

    def drop(self, args: argparse.Namespace, *names: str) -> None:
        """Note those flags that were given."""
        given = [name for name in names if vars(args)[name] is not None]
        self.notes += [f"--{name.replace('_', '-')} has no counterpart" for name in given]


def controller(args: argparse.Namespace, environ: Mapping[str, str]) -> Meaning:
    """Of ``fastchat.serve.controller``. Raises `StartupError`."""
    meaning = Meaning(args, environ)
    meaning.tables["controller"]["policy"] = args.dispatch_method
    _seconds(meaning, environ, "FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION", "lease_s")
    _patience(meaning, environ)
    return meaning


def api(args: argparse.Namespace, environ: Mapping[str, str]) -> Meaning:
    """Of ``fastchat.serve.openai_api_server``. Raises `StartupError`."""
    meaning = Meaning(args, environ)
    if args.api_keys:
        meaning.tables["api"]["keys"] = args.api_keys
    if args.allowed_origins:
        meaning.tables["server"]["cors_origins"] = args.allowed_origins
    meaning.tables["fastchat"]["upstreams"] = [args.controller_address.rstrip("/")]
    _patience(meaning, environ)
    meaning.drop(args, "allowed_methods", "allowed_headers", "allow_credentials")
    return meaning


def worker(args: argparse.Namespace, environ: Mapping[str, str]) -> Meaning:
    """Of ``fastchat.serve.model_worker`` and ``multi_model_worker``. Raises `StartupError`."""
    meaning = Meaning(args, environ)
    fastchat = meaning.tables["fastchat"]
    if not args.no_register:
        fastchat["controllers"] = [args.controller_address.rstrip("/")]
    if args.worker_address:
        fastchat["advertise"] = args.worker_address.rstrip("/")
    if args.debug is not None:
        meaning.tables["server"]["log_level"] = "debug"
    _seconds(meaning, environ, "FASTCHAT_WORKER_HEART_BEAT_INTERVAL", "beat_s")
    models, names = args.model_path or [DEFAULT_MODEL], args.model_names or []
    if len(names) > 1 and len(names) != len(models):
        raise StartupError("--model-names: give it once for each --model-path, or not at all.")
    options, quantised = _options(args, meaning)
    meaning.tables["worker"] = [
        {
            "backend": args.backend,
            "model": quantised or model,
            **({"names": names[number].split(",")} if number < len(names) else {}),
            "concurrency": args.limit_worker_concurrency,
            **({"options": options} if options else {}),
        }
        for number, model in enumerate(models)
    ]
    meaning.drop(args, *OTHER_FLAGS)
    return meaning


def _seconds(meaning: Meaning, environ: Mapping[str, str], variable: str, key: str) -> None:
    if environ.get(variable):
        meaning.tables["fastchat"][key] = _number(variable, environ[variable])


def _patience(meaning: Meaning, environ: Mapping[str, str]) -> None:
    variable = "FASTCHAT_WORKER_API_TIMEOUT"
    if environ.get(variable):
        limit_s = _number(variable, environ[variable])
        meaning.tables["fastchat"]["timeouts"] = {"first_token_s": limit_s, "between_tokens_s": limit_s}


def _number(variable: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StartupError(f"{variable}: {text!r} is no number of seconds.") from None


def _options(args: argparse.Namespace, meaning: Meaning) -> tuple[Tables, str | None]:
    """What is set of ``[worker.options]``, and the checkpoint that a flag names in place of the model's."""
    given = {name: vars(args)[name] for name in LOADER_FLAGS if vars(args)[name] is not None}
    _choose_cards(given, args, meaning)
    if args.backend == "hf":
        return _hf(given, meaning)
    known = _OTHERS.get(args.backend, {})
    for name in given.keys() - known.keys():
        meaning.notes.append(f"--{name.replace('_', '-')} has no counterpart with the backend {args.backend}")
    return {known[name]: value for name, value in given.items() if name in known}, None


def _choose_cards(given: Tables, args: argparse.Namespace, meaning: Meaning) -> None:
    """As FastChat did it: by what the process sees of them."""
    cards = given.pop("gpus", None)
    if cards is None:
        return
    if len(cards.split(",")) < (args.num_gpus or 1):
        raise StartupError(f"--gpus: {cards} are fewer than the {args.num_gpus} of --num-gpus.")
    meaning.environ |= {"CUDA_VISIBLE_DEVICES": cards, "XPU_VISIBLE_DEVICES": cards}


def _hf(given: Tables, meaning: Meaning) -> tuple[Tables, str | None]:
    options: Tables = {name: given.pop(name) for name in ("revision", "device", "dtype") if name in given}
    cards = given.pop("num_gpus", 1)
    memory = given.pop("max_gpu_memory", None)
    if memory is not None:
        options["max_memory"] = {str(card): memory for card in range(cards)}
    spread = [given.pop(name, None) for name in ("cpu_offloading", "exllama_gpu_split")]
    if cards > 1 or memory is not None or any(spread):
        options["device_map"] = "auto"
    if given.pop("load_8bit", False):
        options["quantization"] = "torchao-int8" if options.get("device") == "cpu" else "bitsandbytes-8bit"
    if given.pop("enable_exllama", False):
        options["gptq_kernel"] = "exllama_v2"
    lengths = [given.pop(name, None) for name in ("exllama_max_seq_len", "xft_max_seq_len")]
    if any(lengths):
        options["context_length"] = next(filter(None, lengths))
    if given.pop("enable_xft", False):
        options |= _XFT_DTYPES.get(given.pop("xft_dtype", "bf16"), {})
    checkpoints = [given.pop(name, None) for name in ("gptq_ckpt", "awq_ckpt")]
    for name in given:
        meaning.notes.append(f"--{name.replace('_', '-')} has no counterpart")
    return options, next(filter(None, checkpoints), None)
