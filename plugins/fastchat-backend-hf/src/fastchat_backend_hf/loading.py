"""From options to a model that is ready to step, with errors that say what to change.

Runs on the engine's thread, and gives up between two stages if loading is cancelled. One model is loaded at a time in a
process, since memory estimates, torch's thread count and transformers' progress hook know nothing of each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from fastchat_backend_hf.adapters import Adapters, adapt
from fastchat_backend_hf.batching import choose_runner
from fastchat_backend_hf.checkpoint import Checkpoint, open_checkpoint
from fastchat_backend_hf.context import model_context_length
from fastchat_backend_hf.devices import execution_device, pick_device, pick_dtype, pick_threads
from fastchat_backend_hf.embeddings import Embedder
from fastchat_backend_hf.fused import fuse
from fastchat_backend_hf.generation import Generation
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.pooling import read_max_length, read_pooling
from fastchat_backend_hf.remarks import remarks
from fastchat_backend_hf.sequences import TokenSequence
from fastchat_backend_hf.weights import load_weights
from fastchat_serve import Capability, EngineInfo, EngineSetup, Progress, SamplingParams, StartupError
from fastchat_serve.checkpoint import advised_sampling, fingerprint
from fastchat_serve.stepping import Preparation, SteppedModel, decoder_capabilities
from fastchat_serve.text import (
    ChatTemplate,
    Constraints,
    Prompts,
    TokenizerVocabulary,
    chat_template_of,
    tokenizer_of,
)

__all__ = ["load"]

_LOADING = threading.Lock()

_FALLBACK_CONTEXT = 4096
"""For models that state no limit, as recurrent ones."""


_PATIENCE_S = 0.5
"""How long loading waits for another model before it looks whether it is still wanted."""


def load(setup: EngineSetup) -> SteppedModel:
    """Load `setup.model`. Raises `StartupError`."""
    options, progress = setup.options, setup.progress
    if not isinstance(options, HfOptions):
        raise TypeError(f"options must be HfOptions, not {type(options).__name__}")
    with _alone(progress):
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


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """While no other model is loaded in this process."""
    while not _LOADING.acquire(timeout=_PATIENCE_S):
        progress("waiting for another model to be loaded")
    try:
        yield
    finally:
        _LOADING.release()


def _assemble(
    checkpoint: Checkpoint, options: HfOptions, tokenizer: Any, model: Any, adapters: Adapters
) -> SteppedModel:
    device = execution_device(model.get_input_embeddings())
    notes = [*remarks(checkpoint, options, model, device)]
    context_length = _context_length(checkpoint, options, tokenizer, notes)
    vocabulary = TokenizerVocabulary(tokenizer_of(tokenizer), model.get_input_embeddings().num_embeddings)
    end_ids = _end_ids(tokenizer, model)
    generation = constraints = template = None
    if checkpoint.kind != "encoder":
        template = chat_template_of(tokenizer, file=options.chat_template, variables=options.chat_template_kwargs)
        constraints = Constraints(vocabulary, end_ids=end_ids)
        runner, context_length, reasons = choose_runner(checkpoint, model, adapters, options, context_length)
        notes += reasons
        generation = Generation(
            runner, vocabulary, device, max_batch=options.max_batch, prefill_tokens=options.prefill_tokens
        )
    prompts = Prompts(vocabulary, template, context_length=context_length, empty_prompt_id=tokenizer.bos_token_id)
    preparation = Preparation(
        TokenSequence,
        prompts,
        vocabulary,
        constraints,
        end_ids=end_ids,
        adapters=adapters.names,
        continues_prompt=checkpoint.kind != "encoder-decoder",
    )
    written = template.source if template is not None else ""
    folders = [checkpoint.folder, *([options.lora] if options.lora is not None else []), *options.adapters.values()]
    info = EngineInfo(
        context_length=context_length,
        capabilities=_capabilities(checkpoint, template, adapters),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
        fingerprint=fingerprint(
            folders, str(model.dtype), device.type, options.quantization or "", written, *adapters.names
        ),
        sampling=advised_sampling(checkpoint.folder) if options.generation_config else SamplingParams(),
        tool_parser=template.tool_parser if template is not None else "",
        adapters=adapters.names,
        notes=tuple(notes),
    )
    return SteppedModel(
        info=info,
        prompts=prompts,
        prepare=preparation.answer,
        generation=generation,
        embedder=_embedder(checkpoint, options, model),
    )


def _capabilities(checkpoint: Checkpoint, template: ChatTemplate | None, adapters: Adapters) -> frozenset[Capability]:
    if checkpoint.kind == "encoder":
        return frozenset({Capability.TOKENIZE, Capability.EMBED})
    can = decoder_capabilities(template)
    if adapters.names:
        can |= {Capability.ADAPTERS}
    if checkpoint.kind == "encoder-decoder":
        return can - {Capability.PROMPT_LOGPROBS}
    return can | {Capability.EMBED}


# ---------------------------------------------------------------------------------------- tokenizer


def _tokenizer(checkpoint: Checkpoint, options: HfOptions) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # whatever a broken or missing file leads to
        raise StartupError(f"the model's tokenizer cannot be loaded: {error}") from error


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
