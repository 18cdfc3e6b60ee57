"""From options to a model that is ready to step, with errors that say what to change.

Blocking: runs in a thread of anyio's, and gives up between two stages if the task that waits for it is cancelled.
One model is loaded at a time in a process, since memory estimates, torch's thread count and transformers' progress
hook know nothing of each other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import anyio.from_thread
import torch
import transformers
from tokenizers import Tokenizer

from fastchat_backend_hf.adapters import Adapters, adapt
from fastchat_backend_hf.batching import choose_runner
from fastchat_backend_hf.checkpoint import Checkpoint, fingerprint, open_checkpoint
from fastchat_backend_hf.context import model_context_length
from fastchat_backend_hf.devices import execution_device, pick_device, pick_dtype, pick_threads
from fastchat_backend_hf.embeddings import Embedder
from fastchat_backend_hf.fused import fuse
from fastchat_backend_hf.generation import Generation
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.pooling import read_max_length, read_pooling
from fastchat_backend_hf.prompts import Prompts
from fastchat_backend_hf.remarks import remarks
from fastchat_backend_hf.weights import load_weights
from fastchat_serve import FULL_SAMPLING, Capability, ConfigError, EngineInfo, EngineSetup, SamplingParams, StartupError
from fastchat_serve.text import ChatTemplate, Constraints, Vocabulary

__all__ = ["LoadedModel", "load"]

_LOADING = threading.Lock()

_VARIABLE_TYPES: Final[Mapping[str, type]] = MappingProxyType({"bool": bool, "int": int, "float": float, "str": str})

_FALLBACK_CONTEXT = 4096
"""For models that state no limit, as recurrent ones."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """All that an engine runs on."""

    info: EngineInfo
    prompts: Prompts
    generation: Generation | None
    """None: the model only embeds."""
    embedder: Embedder | None


def load(setup: EngineSetup, options: HfOptions) -> LoadedModel:
    """Load `setup.model`. Raises `StartupError`."""

    def progress(stage: str, fraction: float | None = None) -> None:
        anyio.from_thread.check_cancelled()
        setup.progress(stage, fraction)

    with _LOADING:
        checkpoint = open_checkpoint(
            setup.model, revision=options.revision, trust_remote_code=options.trust_remote_code, progress=progress
        )
        device = pick_device(options.device)
        dtype = pick_dtype(options.dtype, checkpoint.text_config.dtype, device)
        if device.type == "cpu":
            torch.set_num_threads(pick_threads(options.threads))
        progress("reading the tokenizer")
        tokenizer = _tokenizer(checkpoint, options)
        model = load_weights(checkpoint, options, device, dtype, progress)
        progress("arranging the weights")
        adapters = adapt(model, options.adapters)
        fuse(model)
        progress("checking the model")
        return _assemble(checkpoint, options, tokenizer, model, adapters)


def _assemble(
    checkpoint: Checkpoint, options: HfOptions, tokenizer: Any, model: Any, adapters: Adapters
) -> LoadedModel:
    device = execution_device(model.get_input_embeddings())
    notes = [*remarks(checkpoint, options, model, device)]
    context_length = _context_length(checkpoint, options, tokenizer, notes)
    source = _template_source(options, tokenizer) if checkpoint.kind != "encoder" else None
    template = _chat_template(source, options, tokenizer) if source else None
    vocabulary = Vocabulary(_backend(tokenizer), model.get_input_embeddings().num_embeddings)
    generation = None
    if checkpoint.kind != "encoder":
        runner, context_length, reasons = choose_runner(checkpoint, model, adapters, options, context_length)
        notes += reasons
        generation = Generation(
            runner, vocabulary, device, max_batch=options.max_batch, prefill_tokens=options.prefill_tokens
        )
    embedder = _embedder(checkpoint, options, model)
    end_ids = _end_ids(tokenizer, model)
    prompts = Prompts(
        vocabulary,
        template,
        _constraints(vocabulary, end_ids) if generation is not None else None,
        context_length=context_length,
        end_ids=end_ids,
        empty_prompt_id=tokenizer.bos_token_id,
        answers_go_on=checkpoint.kind != "encoder-decoder",
    )
    folders = [checkpoint.folder, *([options.lora] if options.lora is not None else []), *options.adapters.values()]
    info = EngineInfo(
        context_length=context_length,
        capabilities=_capabilities(checkpoint, template, adapters),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
        fingerprint=fingerprint(
            folders, str(model.dtype), device.type, options.quantization or "", source or "", *adapters.names
        ),
        sampling=_advised_sampling(model) if options.generation_config else SamplingParams(),
        tool_parser=template.tool_parser if template is not None else "",
        adapters=adapters.names,
        notes=tuple(notes),
    )
    return LoadedModel(info, prompts, generation, embedder)


def _constraints(vocabulary: Vocabulary, end_ids: frozenset[int]) -> Constraints:
    return Constraints(vocabulary.tokenizer, vocabulary_size=vocabulary.size, end_ids=end_ids)


def _advised_sampling(model: Any) -> SamplingParams:
    """What the model's generation config states; nothing that transformers only assumes."""
    config = getattr(model, "generation_config", None)
    stated = config.to_diff_dict() if config is not None else {}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return SamplingParams(**{name: value for name in names if (value := stated.get(name)) is not None})


def _capabilities(checkpoint: Checkpoint, template: ChatTemplate | None, adapters: Adapters) -> frozenset[Capability]:
    can = {Capability.TOKENIZE}
    if checkpoint.kind != "encoder-decoder":
        can.add(Capability.EMBED)
    if checkpoint.kind == "encoder":
        return frozenset(can)
    can |= {
        Capability.GENERATE,
        Capability.TEXT_PROMPT,
        Capability.TOKEN_PROMPT,
        Capability.TOKEN_IDS,
        Capability.ECHO,
        Capability.LOGPROBS,
        Capability.SEED,
        *FULL_SAMPLING,
        Capability.RESUME_GREEDY,
        Capability.RESUME_SAMPLED,
        Capability.JSON_OBJECT,
        Capability.JSON_SCHEMA,
        Capability.REGEX,
        Capability.GRAMMAR,
        Capability.CHOICE,
    }
    if adapters.names:
        can.add(Capability.ADAPTERS)
    if checkpoint.kind == "causal":
        can.add(Capability.PROMPT_LOGPROBS)
    if template is not None:
        can |= {Capability.CHAT, Capability.RENDER}
        if template.supports_tools:
            can.add(Capability.TOOLS)
            if template.tool_parser == "hermes":  # the form in which `Constraints` demands a call
                can.add(Capability.TOOL_CHOICE)
    return frozenset(can)


# ---------------------------------------------------------------------------------------- tokenizer


def _tokenizer(checkpoint: Checkpoint, options: HfOptions) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # whatever a broken or missing file leads to
        raise StartupError(f"the model's tokenizer cannot be loaded: {error}") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise StartupError("the model's tokenizer has no fast form (tokenizer.json), which streaming needs")
    return tokenizer


def _backend(tokenizer: Any) -> Tokenizer:
    """The library's own tokenizer. What it would cut or fill up, `Prompts` decides."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _template_source(options: HfOptions, tokenizer: Any) -> str | None:
    """The configured chat template, otherwise the model's own, if any."""
    if options.chat_template is not None:
        return _configured_template(options.chat_template)
    source: str | Mapping[str, str] | None = tokenizer.chat_template
    return source.get("default") if isinstance(source, Mapping) else source


def _chat_template(source: str, options: HfOptions, tokenizer: Any) -> ChatTemplate:
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    variables = {name: _VARIABLE_TYPES[kind] for name, kind in options.chat_template_kwargs.items()}
    return ChatTemplate(source, special_tokens=special, options=variables)


def _configured_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"no such chat template file: {file} ({error})") from error


def _end_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Tokens that end an answer: those of the generation config and of the tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _context_length(checkpoint: Checkpoint, options: HfOptions, tokenizer: Any, notes: list[str]) -> int:
    encoder = checkpoint.kind == "encoder"
    limit = model_context_length(checkpoint.text_config, tokenizer.model_max_length, encoder=encoder)
    if encoder and (own := read_max_length(checkpoint.folder)) is not None:
        limit = min(own, limit or own)
    wanted = options.context_length
    if wanted is not None:
        if limit is not None and wanted > limit:
            notes.append(f"context_length = {wanted} is over the {limit} tokens that the model's config states")
        return wanted
    if limit is None:
        notes.append(f"the model states no context length; {_FALLBACK_CONTEXT} is assumed")
    return limit or _FALLBACK_CONTEXT


def _embedder(checkpoint: Checkpoint, options: HfOptions, model: Any) -> Embedder | None:
    if checkpoint.kind == "encoder-decoder":
        return None
    pooling = read_pooling(checkpoint.folder) if options.pooling == "auto" else options.pooling
    network = model if checkpoint.kind == "encoder" else model.base_model
    return Embedder(network, pooling, batch_tokens=options.prefill_tokens)
