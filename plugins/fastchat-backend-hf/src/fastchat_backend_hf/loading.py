"""From options to a model that is ready to step, with errors that say what to change.

Blocking: runs in a thread. One model is loaded at a time in a process, since memory estimates, torch's thread count and
transformers' progress hook know nothing of each other.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from fastchat_backend_hf.batching import choose_runner
from fastchat_backend_hf.checkpoint import Checkpoint, fingerprint, open_checkpoint
from fastchat_backend_hf.context import model_context_length
from fastchat_backend_hf.devices import free_memory, parse_bytes, pick_device, pick_dtype, pick_threads
from fastchat_backend_hf.embeddings import Embedder
from fastchat_backend_hf.failures import is_out_of_memory
from fastchat_backend_hf.generation import Generation
from fastchat_backend_hf.options import HfOptions
from fastchat_backend_hf.pooling import read_max_length, read_pooling
from fastchat_backend_hf.prompts import Prompts
from fastchat_backend_hf.quantization import quantizer, shrunk_itemsize
from fastchat_backend_hf.vocabulary import Vocabulary
from fastchat_serve import Capability, ConfigError, EngineInfo, EngineSetup, Progress, StartupError
from fastchat_serve.text import ChatTemplate

__all__ = ["LoadedModel", "load"]

logger = logging.getLogger(__name__)

_LOADING = threading.Lock()

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
    with _LOADING:
        checkpoint = open_checkpoint(
            setup.model, revision=options.revision, trust_remote_code=options.trust_remote_code, progress=setup.progress
        )
        device = pick_device(options.device)
        dtype = pick_dtype(options.dtype, checkpoint.text_config.dtype, device)
        if device.type == "cpu":
            torch.set_num_threads(pick_threads(options.threads))
        setup.progress("reading the tokenizer")
        tokenizer = _tokenizer(checkpoint, options)
        model = _model(checkpoint, options, device, dtype, setup.progress)
        setup.progress("checking the model")
        return _assemble(checkpoint, options, tokenizer, model, dtype)


def _assemble(
    checkpoint: Checkpoint, options: HfOptions, tokenizer: Any, model: Any, dtype: torch.dtype
) -> LoadedModel:
    notes: list[str] = []
    context_length = _context_length(checkpoint, options, tokenizer, notes)
    template = _chat_template(options, tokenizer) if checkpoint.kind != "encoder" else None
    vocabulary = Vocabulary(_backend(tokenizer), model.get_input_embeddings().num_embeddings)
    device = model.get_input_embeddings().weight.device
    generation = None
    if checkpoint.kind != "encoder":
        runner, context_length, reasons = choose_runner(checkpoint, model, options, context_length)
        notes += reasons
        generation = Generation(
            runner, vocabulary, device, max_batch=options.max_batch, prefill_tokens=options.prefill_tokens
        )
    embedder = _embedder(checkpoint, options, model)
    prompts = Prompts(
        vocabulary,
        template,
        context_length=context_length,
        end_ids=_end_ids(tokenizer, model),
        empty_prompt_id=tokenizer.bos_token_id,
    )
    folders = [checkpoint.folder, *([Path(options.lora)] if options.lora else [])]
    info = EngineInfo(
        context_length=context_length,
        capabilities=_capabilities(checkpoint, template),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        fingerprint=fingerprint(folders, str(dtype), device.type, options.quantization or ""),
        tool_parser=template.tool_parser if template is not None else "",
        notes=tuple(notes),
    )
    return LoadedModel(info, prompts, generation, embedder)


def _capabilities(checkpoint: Checkpoint, template: ChatTemplate | None) -> frozenset[Capability]:
    can = {Capability.TOKENIZE}
    if checkpoint.kind != "encoder-decoder":
        can.add(Capability.EMBED)
    if checkpoint.kind == "encoder":
        return frozenset(can)
    can |= {
        Capability.GENERATE,
        Capability.LOGPROBS,
        Capability.LOGIT_BIAS,
        Capability.RESUME_GREEDY,
        Capability.RESUME_SAMPLED,
        Capability.CHOICE,
    }
    if checkpoint.kind == "causal":
        can.add(Capability.PROMPT_LOGPROBS)
    if template is not None:
        can.add(Capability.CHAT)
        if template.supports_tools:
            can.add(Capability.TOOLS)
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


def _chat_template(options: HfOptions, tokenizer: Any) -> ChatTemplate | None:
    """The configured template, otherwise the model's own, if any."""
    source = tokenizer.chat_template
    if isinstance(source, Mapping):
        source = source.get("default")
    if options.chat_template is not None:
        source = _configured_template(options.chat_template)
    if not source:
        return None
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(source, special_tokens=special)


def _configured_template(value: str) -> str:
    if "{%" in value or "{{" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"no such chat template file: {value} ({error.strerror})") from error


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


# -------------------------------------------------------------------------------------------- model


def _model(
    checkpoint: Checkpoint, options: HfOptions, device: torch.device, dtype: torch.dtype, progress: Progress
) -> Any:
    _check_memory(checkpoint, options, device, dtype)
    auto = {
        "causal": transformers.AutoModelForCausalLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        "encoder": transformers.AutoModel,
    }[checkpoint.kind]
    settings: dict[str, Any] = {"device_map": options.device_map or {"": device}}
    if options.max_memory:
        settings["max_memory"] = _memory_caps(options)
    if options.quantization is not None:
        settings["quantization_config"] = quantizer(options.quantization, dtype)
    try:
        with _reported(progress):
            model: Any = auto.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=options.trust_remote_code,
                **settings,
            )
    except Exception as error:  # whatever broken weights, a missing library or a full device lead to
        if is_out_of_memory(error):
            raise StartupError(f"{device} has not enough memory for this model in {dtype}") from error
        raise StartupError(f"the model cannot be loaded: {error}") from error
    if options.lora is not None:
        model = _with_lora(model, Path(options.lora), merge=options.quantization is None)
    return model.eval()


def _check_memory(checkpoint: Checkpoint, options: HfOptions, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse before loading what cannot fit: running out half-way takes minutes, or the whole machine."""
    needed = checkpoint.weights_bytes(shrunk_itemsize(options.quantization, dtype))
    free = free_memory(device)
    if options.device_map is not None:
        free = sum(_caps_or_free(options, device))
    if needed > free:
        where = "all devices together have" if options.device_map else f"{device} has"
        raise StartupError(
            f"not enough memory: the weights take about {needed / 2**30:.1f} GiB as {options.quantization or dtype}, "
            f"and {where} {free / 2**30:.1f} GiB free; "
            "choose a smaller model, a smaller `dtype`, a `quantization` or a `device_map`"
        )


def _caps_or_free(options: HfOptions, device: torch.device) -> Iterator[int]:
    if options.max_memory:
        yield from (parse_bytes(size) for size in options.max_memory.values())
        return
    yield free_memory(torch.device("cpu"))
    if device.type != "cpu":
        for index in range(torch.accelerator.device_count()):
            yield free_memory(torch.device(device.type, index))


def _memory_caps(options: HfOptions) -> dict[int | str, int]:
    """As accelerate wants it: devices by number."""
    return {int(name) if name.isdigit() else name: parse_bytes(size) for name, size in options.max_memory.items()}


def _with_lora(model: Any, folder: Path, *, merge: bool) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise StartupError("`lora` needs peft: pip install 'fastchat-backend-hf[peft]'")
    if not (folder / "adapter_config.json").is_file():
        raise StartupError(f"{folder} is not a LoRA folder: it has no adapter_config.json")
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, folder, local_files_only=True)
    except Exception as error:  # whatever an adapter for another model leads to
        raise StartupError(f"the LoRA adapter does not fit the model: {error}") from error
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


def _embedder(checkpoint: Checkpoint, options: HfOptions, model: Any) -> Embedder | None:
    if checkpoint.kind == "encoder-decoder":
        return None
    pooling = read_pooling(checkpoint.folder) if options.pooling == "auto" else options.pooling
    network = model if checkpoint.kind == "encoder" else model.base_model
    return Embedder(network, pooling, batch_tokens=options.prefill_tokens)


@contextmanager
def _reported(progress: Progress) -> Iterator[None]:
    """Tell transformers' progress bars, as far as this thread draws them, to `progress` instead."""
    thread = threading.get_ident()

    def hook(make_bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        items = args[0] if args else settings.get("iterable")
        if items is None or threading.get_ident() != thread:
            return make_bar(*args, **settings)
        return _counted(items, progress)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _counted(items: Any, progress: Progress) -> Iterator[Any]:
    total = max(len(items), 1)
    step = -(-total // 100)
    for number, item in enumerate(items):
        if number % step == 0:
            progress("loading weights", number / total)
        yield item
    progress("loading weights", 1.0)
