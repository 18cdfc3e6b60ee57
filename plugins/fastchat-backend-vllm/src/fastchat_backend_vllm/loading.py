"""Opening a model: vLLM's engine, and what the event loop's side needs beside it. Runs in a thread."""

from __future__ import annotations

import dataclasses
import logging
import threading
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer

from fastchat_backend_vllm.arguments import engine_arguments
from fastchat_backend_vllm.environment import vllm_environment
from fastchat_backend_vllm.options import VllmOptions
from fastchat_serve import EngineSetup, SamplingParams, StartupError
from fastchat_serve.text import ChatTemplate, chat_template_of

__all__ = ["Opening", "Tokenizing", "abandon_and_wait", "advised_sampling", "read_tokenizer"]

_ABANDONED_S = 15.0
"""How long a start that was given up is waited for, once its processes are killed."""


class Opening:
    """A start of vLLM, which blocks for a minute and listens to nobody, and what ends it early."""

    def __init__(self, setup: EngineSetup, options: VllmOptions) -> None:
        self._setup, self._options = setup, options
        self._ended = threading.Event()
        self._abandoned = False
        self._others: set[BaseProcess] = set()

    def run(self) -> Any:
        """vLLM's engine. Raises `StartupError`."""
        try:
            with vllm_environment(self._options):
                self._others = set(active_children())
                # In no variable: something in vLLM keeps an exception, whose frames would keep the engine for ever.
                return self._unless_abandoned(self._open(*self._config()))
        finally:
            self._ended.set()

    def abandon(self) -> None:
        """Nobody waits for the engine any more: end its processes, so that `run` ends."""
        self._abandoned = True
        while not self._ended.wait(0.2):
            for process in set(active_children()) - self._others:
                if process.name.startswith("EngineCore"):
                    process.kill()

    def _unless_abandoned(self, engine: Any) -> Any:
        if self._abandoned:
            engine.shutdown(timeout=0)
        return engine

    def _config(self) -> tuple[Any, Any, Any]:
        self._setup.progress("importing vLLM")
        try:
            from vllm import AsyncEngineArgs
            from vllm.config.logging import LoggingConfig
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
            from vllm.v1.executor import Executor
        except Exception as error:  # a library that does not fit raises whatever it comes to
            raise StartupError(
                f"vLLM cannot be imported: {_reason(error)}. On a CPU, its wheel brings three packages that break it: "
                "pip uninstall -y torchvision torchaudio torchcodec"
            ) from error
        logging.getLogger("vllm").setLevel(logging.WARNING)
        logging.getLogger("vllm.v1.engine.async_llm").addFilter(_not_about_prepared_requests)
        known = {field.name for field in dataclasses.fields(AsyncEngineArgs) if field.init}
        quarter = psutil.virtual_memory().available // 4
        arguments = engine_arguments(
            self._setup.model, self._options, known, cpu_kv_bytes=quarter if current_platform.is_cpu() else None
        )
        arguments.setdefault("logging_config", LoggingConfig(configure_logging=False))
        self._setup.progress("reading the model's config")
        try:
            config = AsyncEngineArgs(**arguments).create_engine_config()
            return AsyncLLM, config, Executor.get_class(config)
        except Exception as error:  # the boundary to foreign code: a bad model, a bad option, a missing kernel
            raise StartupError(f"vLLM does not take the model with these options: {_reason(error)}") from error

    def _open(self, engine_class: Any, config: Any, executor: Any) -> Any:
        if config.model_config.is_encoder_decoder:
            raise StartupError('encoder-decoder models are not served by this backend; backend = "hf" serves them')
        self._setup.progress("starting the engine's process and loading the weights")
        try:
            return engine_class(config, executor, log_stats=False, log_requests=False)
        except Exception as error:  # what went wrong is in the process's own output
            raise StartupError(
                f"vLLM could not start: {_reason(error)} What its process wrote above says more."
            ) from error


def abandon_and_wait(opening: Opening) -> None:
    """End `opening` early, for a bounded time. Blocks."""
    thread = threading.Thread(target=opening.abandon, daemon=True)
    thread.start()
    thread.join(_ABANDONED_S)


@dataclasses.dataclass(frozen=True, slots=True)
class Tokenizing:
    """The parts of a model's tokenizer."""

    tokenizer: Tokenizer
    template_source: str
    """Empty: the model has no chat template."""
    template: ChatTemplate | None
    end_ids: frozenset[int]
    bos_id: int | None


def read_tokenizer(engine: Any, options: VllmOptions) -> Tokenizing:
    """The tokenizer of an open `engine`. Raises `StartupError`."""
    shared = engine.renderer.get_tokenizer()
    backend = getattr(shared, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise StartupError("the model's tokenizer has no fast form (tokenizer.json), which streaming needs")
    tokenizer = Tokenizer.from_str(backend.to_str())  # vLLM's own is left as it is
    tokenizer.no_truncation()
    tokenizer.no_padding()
    template = chat_template_of(shared, file=options.chat_template, variables=options.chat_template_kwargs)
    return Tokenizing(
        tokenizer,
        template_source=_template_source(options.chat_template, shared),
        template=template,
        end_ids=_end_ids(engine.model_config, shared),
        bos_id=shared.bos_token_id,
    )


def advised_sampling(model_config: Any) -> SamplingParams:
    """What the model's generation config states."""
    stated = model_config.get_diff_sampling_param()
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return SamplingParams(**{name: value for name in names if (value := stated.get(name)) is not None})


def _template_source(file: Path | None, tokenizer: Any) -> str:
    """What tells one template from another."""
    return file.read_text(encoding="utf-8") if file is not None else str(tokenizer.chat_template or "")


def _end_ids(model_config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as vLLM finds them."""
    found = {tokenizer.eos_token_id} - {None}
    ids = model_config.try_get_generation_config().get("eos_token_id")
    found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _reason(error: Exception) -> str:
    """The first line that says something; pydantic's first line only counts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "validation error" in lines[0]:
        return lines[1].removeprefix("Value error, ").split(" [type=", 1)[0]
    return lines[0] if lines else type(error).__name__


def _not_about_prepared_requests(record: logging.LogRecord) -> bool:
    """vLLM advises against preparing requests elsewhere. It is meant, and tested with the versions we allow."""
    return "Passing EngineCoreRequest" not in str(record.msg)
