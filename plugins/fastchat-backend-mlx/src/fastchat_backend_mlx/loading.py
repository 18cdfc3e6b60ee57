"""From options to a model that is ready to step, with errors that say what to change. Runs on the engine's thread."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from fastchat_backend_mlx.context import model_context_length
from fastchat_backend_mlx.generation import Generation
from fastchat_backend_mlx.options import MlxOptions, in_bytes
from fastchat_backend_mlx.prefixes import Prefixes
from fastchat_serve import EngineInfo, EngineSetup, SamplingParams, StartupError
from fastchat_serve.checkpoint import advised_sampling, find_folder, fingerprint, weight_files
from fastchat_serve.stepping import Answer, Preparation, SteppedModel, decoder_capabilities
from fastchat_serve.text import (
    ChatTemplate,
    Constraints,
    Prompts,
    TokenizerVocabulary,
    chat_template_of,
    tokenizer_of,
)

__all__ = ["leave_thread", "load"]

_WEIGHTS = "model*.safetensors"

_FALLBACK_CONTEXT = 4096
"""For models that state no limit, as recurrent ones."""


def load(setup: EngineSetup) -> SteppedModel:
    """Load `setup.model`. Raises `StartupError`."""
    options = setup.options
    if not isinstance(options, MlxOptions):
        raise TypeError(f"options must be MlxOptions, not {type(options).__name__}")
    folder = find_folder(
        setup.model,
        revision=options.revision,
        with_code=options.trust_remote_code,
        weights=(_WEIGHTS,),
        progress=setup.progress,
    )
    if not weight_files(folder, (_WEIGHTS,)):
        raise StartupError(f"{setup.model} has no weights that mlx reads: {_WEIGHTS}")
    setup.progress("loading weights")
    model, wrapper, config = _load(folder, options)
    setup.progress("checking the model")
    vocabulary = TokenizerVocabulary(tokenizer_of(wrapper), _vocabulary_size(model))
    template = chat_template_of(wrapper, file=options.chat_template, variables=options.chat_template_kwargs)
    info = _info(folder, options, model, config, wrapper, template)
    end_ids = frozenset(wrapper.eos_token_ids)
    prompts = Prompts(vocabulary, template, context_length=info.context_length, empty_prompt_id=wrapper.bos_token_id)
    constraints = Constraints(vocabulary, end_ids=end_ids)
    generation = Generation(
        model,
        vocabulary,
        context_length=info.context_length,
        max_batch=options.max_batch,
        prefill_batch=options.prefill_batch,
        prefill_tokens=options.prefill_tokens,
        prefixes=Prefixes(in_bytes(options.prefix_cache_bytes)),
    )
    prepare = Preparation(Answer, prompts, vocabulary, constraints, end_ids=end_ids).answer
    return SteppedModel(info=info, prompts=prompts, prepare=prepare, generation=generation)


def leave_thread() -> None:
    """Give back what mlx keeps for the calling thread, and the memory of what nobody refers to any more."""
    gc.collect()
    mx.clear_cache()
    mx.clear_streams()  # a thread that ends with streams of its own can abort the process when that exits


# -------------------------------------------------------------------------------------------- model


def _load(folder: Path, options: MlxOptions) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its tokenizer in mlx-lm's wrapper, and its config."""
    code = options.trust_remote_code
    with _told("the model cannot be loaded"):
        model, wrapper, config = mlx_lm.load(
            str(folder),
            tokenizer_config={"trust_remote_code": code},
            lazy=True,
            return_config=True,
            trust_remote_code=code,
        )
    if options.adapter is not None:
        with _told("the adapter cannot be loaded"):
            model = mlx_lm.utils.load_adapters(model, str(options.adapter))
            model.eval()
    if options.dtype != "auto":
        model.set_dtype(getattr(mx, options.dtype))
    _merge_adapter(model)
    with _told("the model's weights cannot be read"):
        mx.eval(model.parameters())
    return model, wrapper, config


@contextlib.contextmanager
def _told(problem: str) -> Iterator[None]:
    """Turn whatever a broken or missing file leads to into a `StartupError`."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise StartupError(f"{problem}: {reason}") from error


def _merge_adapter(model: Any) -> None:
    """Into weights that are not quantised; rounding a sum to a few bits could swallow the adapter."""
    merged = [
        (name, layer.fuse())
        for name, layer in model.named_modules()
        if hasattr(layer, "fuse") and "scales" not in getattr(layer, "linear", {})
    ]
    if merged:
        model.update_modules(tree_unflatten(merged))


def _vocabulary_size(model: Any) -> int:
    """How many logits the model gives, seen from a pass of one token. Raises `StartupError` if it cannot be batched."""
    cache = make_prompt_cache(model)
    alone = sorted({type(layer).__name__ for layer in cache if not hasattr(layer, "merge")})
    if alone:
        raise StartupError(f"mlx-lm cannot batch this model: it has no batched form of {', '.join(alone)}")
    with _told("the model does not run"):
        logits = model(mx.array([[0]]), cache=cache)
        mx.eval(logits)
    return int(logits.shape[-1])


def _dtype(model: Any) -> str:
    """Of the weights that are not quantised, hence of the computation."""
    found = {value.dtype for _, value in tree_flatten(model.parameters()) if mx.issubdtype(value.dtype, mx.floating)}
    return "+".join(sorted(str(dtype).removeprefix("mlx.core.") for dtype in found))


# --------------------------------------------------------------------------------------------- info


def _info(
    folder: Path,
    options: MlxOptions,
    model: Any,
    config: dict[str, Any],
    wrapper: Any,
    template: ChatTemplate | None,
) -> EngineInfo:
    notes: list[str] = []
    if options.trust_remote_code:
        notes.append("Python code that came with the model may run here (trust_remote_code)")
    dtype = _dtype(model)
    device = str(mx.default_device().type).removeprefix("DeviceType.")
    folders = [folder, *([options.adapter] if options.adapter is not None else [])]
    written = template.source if template is not None else ""
    return EngineInfo(
        context_length=_context_length(config, options, wrapper.model_max_length, notes),
        capabilities=decoder_capabilities(template),
        dtype=dtype,
        device=device,
        fingerprint=fingerprint(folders, "mlx", dtype, device, written),
        sampling=advised_sampling(folder) if options.generation_config else SamplingParams(),
        tool_parser=template.tool_parser if template is not None else "",
        notes=tuple(notes),
    )


def _context_length(config: dict[str, Any], options: MlxOptions, tokenizer_limit: int, notes: list[str]) -> int:
    limit, wanted = model_context_length(config, tokenizer_limit), options.context_length
    if wanted is not None and limit is not None and wanted > limit:
        notes.append(f"context_length = {wanted} is over the {limit} tokens that the model's config states")
    if wanted is None and limit is None:
        notes.append(f"the model states no context length; {_FALLBACK_CONTEXT} is assumed")
    return wanted or limit or _FALLBACK_CONTEXT
