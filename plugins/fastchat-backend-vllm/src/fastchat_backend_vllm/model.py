"""What an open engine is made of, beside vLLM's own part. Runs in a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import vllm
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from fastchat_backend_vllm.intake import Intake
from fastchat_backend_vllm.loading import Tokenizing, advised_sampling, read_tokenizer
from fastchat_backend_vllm.options import VllmOptions
from fastchat_serve import FULL_SAMPLING, Capability, EngineInfo, EngineSetup, SamplingParams, StartupError
from fastchat_serve.checkpoint import find_folder, fingerprint
from fastchat_serve.text import Prompts, TokenizerVocabulary

__all__ = ["Model", "assemble"]


@dataclass(frozen=True, slots=True)
class Model:
    """All that requests are prepared with.

    Attributes:
        adapters: In vLLM's form, by name.
        cache_tokens: What the key-value cache holds; 0 if vLLM does not say.
        most_running: Answers under way at the same time.
    """

    info: EngineInfo
    prompts: Prompts
    intake: Intake
    adapters: dict[str, LoRARequest]
    cache_tokens: int
    most_running: int


def assemble(engine: Any, tasks: tuple[str, ...], setup: EngineSetup, options: VllmOptions) -> Model:
    """For an open `engine` that supports `tasks`. Raises `StartupError`."""
    config = engine.vllm_config
    context_length: int = config.model_config.max_model_len
    tokenizing = read_tokenizer(engine, options)
    vocabulary = TokenizerVocabulary(tokenizing.tokenizer, config.model_config.get_vocab_size())
    prompts = Prompts(vocabulary, tokenizing.template, context_length=context_length, empty_prompt_id=tokenizing.bos_id)
    adapters = {
        name: LoRARequest(name, number, str(folder.absolute()))
        for number, (name, folder) in enumerate(options.adapters.items(), 1)
    }
    intake = Intake(engine.input_processor, tasks, prompts, vocabulary, end_ids=tokenizing.end_ids, adapters=adapters)
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    template = tokenizing.template
    info = EngineInfo(
        context_length=context_length,
        capabilities=_capabilities(tasks, tokenizing, config, adapters=bool(adapters)),
        dtype=dtype,
        device=str(current_platform.device_type),
        fingerprint=_fingerprint(setup.model, options, tokenizing, dtype),
        sampling=advised_sampling(config.model_config) if options.generation_config else SamplingParams(),
        tool_parser=template.tool_parser if template is not None else "",
        adapters=tuple(adapters),
        notes=_notes(options),
    )
    cache_tokens = getattr(config.cache_config, "kv_cache_size_tokens", None) or 0
    return Model(info, prompts, intake, adapters, cache_tokens, config.scheduler_config.max_num_seqs)


def _capabilities(
    tasks: tuple[str, ...], tokenizing: Tokenizing, config: Any, *, adapters: bool
) -> frozenset[Capability]:
    can = {Capability.TOKENIZE}
    if "embed" in tasks:
        can.add(Capability.EMBED)
    if "generate" not in tasks:
        return frozenset(can)
    can |= {
        Capability.GENERATE,
        Capability.TEXT_PROMPT,
        Capability.TOKEN_PROMPT,
        Capability.TOKEN_IDS,
        Capability.ECHO,
        Capability.LOGPROBS,
        Capability.PROMPT_LOGPROBS,
        Capability.SEED,
        *FULL_SAMPLING,
        Capability.RESUME_GREEDY,
        Capability.JSON_OBJECT,
        Capability.JSON_SCHEMA,
        Capability.REGEX,
        Capability.GRAMMAR,
        Capability.CHOICE,
    }
    if config.structured_outputs_config.backend == "guidance":
        can.discard(Capability.GRAMMAR)  # of another syntax
    if config.speculative_config is not None:
        can -= {Capability.MIN_P, Capability.LOGIT_BIAS}  # vLLM refuses them with drafts
    if tokenizing.template is not None:
        can |= {Capability.CHAT, Capability.RENDER}
        if tokenizing.template.supports_tools:
            can.add(Capability.TOOLS)
    if adapters:
        can.add(Capability.ADAPTERS)
    return frozenset(can)


def _fingerprint(model: str, options: VllmOptions, tokenizing: Tokenizing, dtype: str) -> str:
    """Empty, which equals no other, where the weights are not to be found."""
    try:
        folder = find_folder(model, revision=options.revision)
    except StartupError:
        return ""
    salt = ("vllm", dtype, options.quantization or "", options.kv_cache_dtype, tokenizing.template_source)
    return fingerprint([folder, *options.adapters.values()], *salt, *options.adapters)


def _notes(options: VllmOptions) -> tuple[str, ...]:
    notes = [f"vLLM {vllm.__version__}"]
    if options.trust_remote_code:
        notes.append("Python code that came with the model may run here (trust_remote_code)")
    return tuple(notes)
