"""From options to an open SGLang, with errors that say what to change. Blocking; runs in the host."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat_backend_sglang.arguments import SPARE_TOKENS, server_args
from fastchat_backend_sglang.capabilities import capabilities
from fastchat_backend_sglang.failure import read_failure
from fastchat_backend_sglang.options import SglangOptions
from fastchat_backend_sglang.scheduler import run_scheduler
from fastchat_serve import ConfigError, EngineInfo, SamplingParams, StartupError
from fastchat_serve.checkpoint import advised_sampling, find_folder, fingerprint
from fastchat_serve.text import Prompts, TokenizerVocabulary, Vocabulary, chat_template_of

__all__ = ["Loaded", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that the host works with."""

    engine: Any
    """SGLang's `Engine`."""
    info: EngineInfo
    prompts: Prompts
    vocabulary: Vocabulary
    end_ids: frozenset[int]
    kv_cache_tokens: int


def load(model: str, options: SglangOptions, progress: Callable[[str], None]) -> Loaded:
    """Open `model`. Raises `StartupError`."""
    progress("finding the model")
    folder = find_folder(model, revision=options.revision, with_code=options.trust_remote_code)
    _check_files(options)
    progress("importing SGLang")
    device = _device(options)
    engine_class = _engine_class()
    arguments = _arguments(folder, options, device)
    progress("loading the model")
    try:
        engine = engine_class(**arguments)
    except Exception as error:  # whatever SGLang raises for arguments, files or devices it cannot use
        reason = read_failure() or " ".join(str(error).split()) or type(error).__name__
        raise StartupError(f"SGLang cannot serve {model}: {reason}") from error
    progress("reading the tokenizer")
    return _assemble(engine, folder, options, device)


def _check_files(options: SglangOptions) -> None:
    """Before the minute that loading takes."""
    if options.chat_template is not None and not options.chat_template.is_file():
        raise ConfigError(f"no such chat template file: {options.chat_template}")
    for name, path in options.adapters.items():
        if not (path / "adapter_config.json").is_file():
            raise StartupError(f"the adapter {name} has no adapter_config.json in {path}")


def _engine_class() -> type[Any]:
    try:
        from sglang.srt.entrypoints.engine import Engine
    except ImportError as error:
        raise StartupError(
            f"SGLang cannot be imported ({error}). Install it: pip install sglang, or as SGLang's manual says for your "
            "accelerator"
        ) from error

    # A remark on the handler that we give it, which it makes as if it were an error.
    logging.getLogger(Engine.__module__).addFilter(lambda record: "custom SIGQUIT" not in record.getMessage())

    class MendedEngine(Engine):  # type: ignore[misc,unused-ignore]
        run_scheduler_process_func = staticmethod(run_scheduler)

    return MendedEngine


def _device(options: SglangOptions) -> str:
    """Also tells SGLang, which wants to know before it is imported, if it is the CPU."""
    import torch

    if options.device == "cpu" or (options.device == "auto" and not torch.accelerator.is_available()):
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling takes longer than it ever gains there
        return "cpu"
    if options.device != "auto":
        return options.device
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def _arguments(folder: Path, options: SglangOptions, device: str) -> dict[str, Any]:
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import cpu_has_amx_support

    return server_args(
        folder,
        options,
        device=device,
        context_length=options.context_length or _model_context_length(folder, options),
        amx=bool(cpu_has_amx_support()),
        known=ServerArgs.__struct_fields__,
    )


def _model_context_length(folder: Path, options: SglangOptions) -> int:
    from sglang.srt.utils.hf_transformers_utils import get_config, get_context_length, get_hf_text_config

    try:
        config = get_config(str(folder), trust_remote_code=options.trust_remote_code)
    except Exception as error:  # transformers raises whatever a broken config leads to
        raise StartupError(f"the model's config.json cannot be used: {error}") from error
    return int(get_context_length(get_hf_text_config(config)))


def _assemble(engine: Any, folder: Path, options: SglangOptions, device: str) -> Loaded:
    from tokenizers import Tokenizer

    manager = engine.tokenizer_manager
    tokenizer = manager.tokenizer
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise StartupError("the model's tokenizer has no fast form (tokenizer.json), which streaming needs")
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # SGLang goes on using its own
    own.no_truncation()
    own.no_padding()
    vocabulary = TokenizerVocabulary(own, manager.model_config.vocab_size)
    template = None
    if options.task == "generate":
        template = chat_template_of(tokenizer, file=options.chat_template, variables=options.chat_template_kwargs)
    scheduler = engine._scheduler_init_result.scheduler_infos[0]
    length, notes = _context_length(manager, scheduler, options)
    dtype = str(manager.model_config.dtype).removeprefix("torch.")
    folders = [folder, *(path for _, path in sorted(options.adapters.items()))]
    written = str(tokenizer.chat_template) if options.chat_template is None else options.chat_template.read_text()
    info = EngineInfo(
        context_length=length,
        capabilities=capabilities(
            options,
            chat=template is not None,
            tools=template is not None and template.supports_tools,
            constraints=manager.config_value("grammar_backend") != "none",
        ),
        dtype=dtype,
        device=device,
        fingerprint=fingerprint(folders, dtype, device, options.quantization or "", *sorted(options.adapters), written),
        sampling=advised_sampling(folder) if options.generation_config else SamplingParams(),
        tool_parser=template.tool_parser if template is not None else "",
        adapters=tuple(options.adapters),
        notes=notes,
    )
    prompts = Prompts(vocabulary, template, context_length=length, empty_prompt_id=tokenizer.bos_token_id)
    return Loaded(engine, info, prompts, vocabulary, _end_ids(manager), scheduler["max_total_num_tokens"])


def _context_length(manager: Any, scheduler: Mapping[str, Any], options: SglangOptions) -> tuple[int, tuple[str, ...]]:
    """What prompt and answer may take together, and what an operator should know of it."""
    notes = (
        ["Python code that came with the model may run here (trust_remote_code)"] if options.trust_remote_code else []
    )
    wanted = manager.model_config.context_len - SPARE_TOKENS
    length = min(wanted, scheduler["max_total_num_tokens"] - SPARE_TOKENS)
    if length < 1:
        raise StartupError("the key-value cache has no room for a single request; raise kv_cache_tokens")
    if length < wanted:
        notes.append(f"the key-value cache holds {length} tokens, less than the context of {wanted}")
    return length, tuple(notes)


def _end_ids(manager: Any) -> frozenset[int]:
    """The tokens at which SGLang ends every answer."""
    tokenizer = manager.tokenizer
    ids = {
        *(manager.model_config.hf_eos_token_id or ()),
        *(getattr(tokenizer, "additional_stop_token_ids", None) or ()),
    }
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)
