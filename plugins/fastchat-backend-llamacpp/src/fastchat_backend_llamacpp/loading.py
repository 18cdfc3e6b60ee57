"""From options to a model that is ready to step, with errors that say what to change.

Runs on the engine's thread, and gives up in the middle of a file if loading is cancelled.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fastchat_backend_llamacpp.embeddings import TEXTS, Embedder, Pooling
from fastchat_backend_llamacpp.files import find_file, fingerprint
from fastchat_backend_llamacpp.generation import SCORED_TOKENS, Generation
from fastchat_backend_llamacpp.library import llama
from fastchat_backend_llamacpp.native import Context, Model
from fastchat_backend_llamacpp.options import LlamaCppOptions
from fastchat_backend_llamacpp.sequences import TokenSequence
from fastchat_backend_llamacpp.vocabulary import GgufVocabulary
from fastchat_serve import Capability, ConfigError, EngineInfo, EngineSetup, SamplingParams, StartupError
from fastchat_serve.stepping import Preparation, SteppedModel, decoder_capabilities
from fastchat_serve.text import ChatTemplate, Constraints, Prompts, make_template

__all__ = ["load"]

_POOLINGS: Final[Mapping[str, Pooling]] = MappingProxyType({"1": "mean", "2": "cls", "3": "last"})
"""As GGUF files number them."""

_RERANKER = "4"

_LONGEST_UNASKED = 8192
"""Models of today state contexts whose cache is larger than they are."""

_EMBEDDED_TOKENS = 256
"""In a batch of texts to embed; each of them takes a row of logits as well."""

_ADVICE: Final = MappingProxyType(
    {
        "temperature": ("temp", float),
        "top_p": ("top_p", float),
        "top_k": ("top_k", int),
        "min_p": ("min_p", float),
        "repetition_penalty": ("penalty_repeat", float),
    }
)
"""Fields of `SamplingParams`, and where a file advises them: ``general.sampling.…``."""


def load(setup: EngineSetup) -> SteppedModel:
    """Load `setup.model`. Raises `StartupError`."""
    options = setup.options
    if not isinstance(options, LlamaCppOptions):
        raise TypeError(f"options must be LlamaCppOptions, not {type(options).__name__}")
    llama()
    file = find_file(setup.model, setup.progress)
    with ExitStack() as resources:
        model = _open(file, setup, options)
        resources.callback(model.close)
        setup.progress("checking the model")
        return _Loader(file, model, options, resources).assemble()


def _open(file: Path, setup: EngineSetup, options: LlamaCppOptions) -> Model:
    stopped: list[BaseException] = []

    def progress(fraction: float) -> bool:
        """Called by llama.cpp, through which no exception may pass."""
        try:
            setup.progress("loading weights", fraction)
        except BaseException as error:
            stopped.append(error)
        return not stopped

    try:
        return Model(file, _model_settings(options), progress)
    except StartupError:
        if stopped:
            raise stopped[0] from None
        raise


def _model_settings(options: LlamaCppOptions) -> dict[str, Any]:
    library = llama()
    mode = (
        ("MMAP_MLOCK" if options.use_mlock else "MMAP")
        if options.use_mmap
        else "MLOCK"
        if options.use_mlock
        else "NONE"
    )
    settings: dict[str, Any] = {
        "n_gpu_layers": -1 if options.n_gpu_layers is None else options.n_gpu_layers,
        "main_gpu": options.main_gpu,
        "split_mode": getattr(library, f"LLAMA_SPLIT_MODE_{options.split_mode.upper()}"),
        "load_mode": getattr(library, f"LLAMA_LOAD_MODE_{mode}"),
    }
    if options.tensor_split:
        most = library.llama_max_devices()
        if len(options.tensor_split) > most:
            raise ConfigError(f"tensor_split names {len(options.tensor_split)} devices, and llama.cpp takes {most}")
        settings["tensor_split"] = (ctypes.c_float * most)(*options.tensor_split)
    return settings


class _Loader:
    """What becomes of one open model."""

    def __init__(self, file: Path, model: Model, options: LlamaCppOptions, resources: ExitStack) -> None:
        self._file, self._model, self._options, self._resources = file, model, options, resources
        self._architecture = model.metadata("general.architecture") or ""
        self._notes: list[str] = []
        self._context_length = self._choose_context_length()
        self._is_causal = self._own("attention.causal") != "false"

    def assemble(self) -> SteppedModel:
        model, options = self._model, self._options
        if model.has_encoder or not model.has_decoder:
            raise StartupError("encoder-decoder models are not served by the llamacpp backend")
        vocabulary = GgufVocabulary(model)
        adapters = {name: model.load_adapter(path) for name, path in options.adapters.items()}
        template = constraints = generation = None
        if self._is_causal:
            template = make_template(
                model.metadata("tokenizer.chat_template"),
                special_tokens=vocabulary.special_tokens,
                file=options.chat_template,
                variables=options.chat_template_kwargs,
            )
            constraints = Constraints(vocabulary, end_ids=vocabulary.end_ids)
            generation = self._generation(vocabulary, adapters)
        pooling = self._pooling()
        embedder = None if pooling is None else self._embedder(pooling)
        prompts = Prompts(vocabulary, template, context_length=self._context_length, empty_prompt_id=vocabulary.bos_id)
        preparation = Preparation(
            partial(TokenSequence, vocabulary_size=vocabulary.size),
            prompts,
            vocabulary,
            constraints,
            end_ids=vocabulary.end_ids,
            adapters=adapters,
        )
        info = EngineInfo(
            context_length=self._context_length,
            capabilities=self._capabilities(template, embeds=embedder is not None),
            dtype=model.file_type,
            device=self._device(),
            fingerprint=self._fingerprint(template.source if template is not None else ""),
            sampling=self._advised_sampling() if options.generation_config else SamplingParams(),
            tool_parser=template.tool_parser if template is not None else "",
            adapters=tuple(adapters),
            notes=tuple(self._notes),
        )
        owned = self._resources.pop_all()  # the loaded model closes them from now on
        return SteppedModel(
            info=info,
            prompts=prompts,
            prepare=preparation.answer,
            generation=generation,
            embedder=embedder,
            close=owned.close,
        )

    def _own(self, key: str) -> str | None:
        """What the file's header says under a key of its architecture."""
        return self._model.metadata(f"{self._architecture}.{key}")

    # ------------------------------------------------------------------------------------- contexts

    def _generation(self, vocabulary: GgufVocabulary, adapters: Mapping[str, Any]) -> Generation:
        options = self._options
        cells = options.kv_cache_tokens or self._context_length
        if cells < self._context_length:
            raise ConfigError(f"kv_cache_tokens = {cells} is less than the context of {self._context_length} tokens")
        prefill = min(options.prefill_tokens, self._context_length)
        context = self._context(
            n_ctx=cells,
            n_batch=options.max_batch + prefill,
            n_ubatch=options.max_batch + prefill,
            n_seq_max=options.max_batch,
            n_outputs_max=options.max_batch + SCORED_TOKENS,
        )
        forgets = self._model.forgets
        if forgets and options.prefix_cache:
            self._notes.append("the model's cache cannot be cut, so beginnings of prompts are not shared")
        return Generation(
            context,
            vocabulary,
            adapters=adapters,
            max_batch=options.max_batch,
            prefill_tokens=prefill,
            keeps_prefixes=options.prefix_cache and not forgets,
        )

    def _embedder(self, pooling: Pooling) -> Embedder:
        # A model that looks ahead reads a text in one pass.
        batch_tokens = min(_EMBEDDED_TOKENS, self._context_length) if self._is_causal else self._context_length
        context = self._context(
            n_ctx=max(self._context_length, batch_tokens),
            n_batch=batch_tokens,
            n_ubatch=batch_tokens,
            n_seq_max=TEXTS,
            embeddings=True,
            pooling_type=llama().LLAMA_POOLING_TYPE_NONE,
        )
        return Embedder(context, pooling, batch_tokens=batch_tokens)

    def _context(self, **settings: Any) -> Context:
        library, options = llama(), self._options
        threads = options.threads or int(os.environ.get("OMP_NUM_THREADS") or max((os.cpu_count() or 2) - 1, 1))
        exact = options.cache_type_k == options.cache_type_v == "f32"
        flash = {"auto": "DISABLED" if exact else "AUTO", "on": "ENABLED", "off": "DISABLED"}[options.flash_attn]
        context = Context(
            self._model,
            {
                "n_threads": threads,
                "n_threads_batch": threads,
                "flash_attn_type": getattr(library, f"LLAMA_FLASH_ATTN_TYPE_{flash}"),
                "type_k": getattr(library, f"GGML_TYPE_{options.cache_type_k.upper()}"),
                "type_v": getattr(library, f"GGML_TYPE_{options.cache_type_v.upper()}"),
                "kv_unified": True,  # any answer may have any cell
                "no_perf": True,
                **settings,
            },
        )
        self._resources.callback(context.close)
        return context

    def _choose_context_length(self) -> int:
        limit, wanted = self._model.trained_length, self._options.context_length
        if wanted is not None:
            if 0 < limit < wanted:
                self._notes.append(f"context_length = {wanted} is over the {limit} tokens that the model states")
            return wanted
        if limit > _LONGEST_UNASKED:
            self._notes.append(f"the model takes {limit} tokens; for more than {_LONGEST_UNASKED} set context_length")
        return min(limit or _LONGEST_UNASKED, _LONGEST_UNASKED)

    # ----------------------------------------------------------------------------------- description

    def _pooling(self) -> Pooling | None:
        """How to pool embeddings; None if there are to be none. Raises `StartupError`."""
        stated, options = self._own("pooling_type"), self._options
        if options.embeddings is None and self._is_causal and stated not in _POOLINGS:
            return None
        if options.embeddings is False:
            if not self._is_causal:
                raise StartupError("this model does nothing but embeddings, which are switched off")
            return None
        if options.pooling != "auto":
            return options.pooling
        if stated == _RERANKER:
            raise StartupError("this is a model for reranking, which has no embeddings; set `pooling` to override")
        return _POOLINGS.get(stated or "", "mean")

    def _capabilities(self, template: ChatTemplate | None, *, embeds: bool) -> frozenset[Capability]:
        can = decoder_capabilities(template) if self._is_causal else frozenset({Capability.TOKENIZE})
        if embeds:
            can |= {Capability.EMBED}
        if self._is_causal and self._options.adapters:
            can |= {Capability.ADAPTERS}
        return can

    def _device(self) -> str:
        offloads = self._options.n_gpu_layers != 0 and llama().llama_supports_gpu_offload()
        return "gpu" if offloads else "cpu"

    def _fingerprint(self, template: str) -> str:
        adapters = [f"{name}={fingerprint(path)}" for name, path in self._options.adapters.items()]
        options = self._options
        return fingerprint(self._file, options.cache_type_k, options.cache_type_v, self._device(), template, *adapters)

    def _advised_sampling(self) -> SamplingParams:
        advice = {}
        for field, (key, kind) in _ADVICE.items():
            if (value := self._model.metadata(f"general.sampling.{key}")) is not None:
                advice[field] = kind(value)
        return SamplingParams(**advice)
