"""Opening: what an engine says of itself, and that it has what it declares."""

from __future__ import annotations

from types import MappingProxyType

from fastchat_serve.engine import CONTRACT, Capability, Engine, EngineInfo, EngineLoad, SamplingParams, missing_methods
from fastchat_serve.testing.subject import Subject

PROMPT_KINDS = frozenset({Capability.TEXT_PROMPT, Capability.TOKEN_PROMPT, Capability.CHAT})

RESTS_ON = MappingProxyType(
    {
        Capability.TOOLS: {Capability.CHAT},
        Capability.TOOL_CALLS: {Capability.TOOLS},
        Capability.TOOL_CHOICE: {Capability.TOOLS},
        Capability.RENDER: {Capability.CHAT},
        Capability.RESUME_GREEDY: {Capability.TOKEN_IDS},
        Capability.RESUME_SAMPLED: {Capability.TOKEN_IDS, Capability.SEED},
    }
)
"""Who can resume must say which tokens there were; draws that are a function of (seed, position) are seeded."""


async def test_opens(subject: Subject) -> None:
    """`async with engine:` loads it; then it is well, and has every member of `Engine` and every method it declares."""
    assert isinstance(subject.engine, Engine), "a member of `Engine` is missing"
    assert missing_methods(subject.engine) == []
    assert subject.engine.fatal_error is None
    subject.note(f"{subject.load_s:.2f} s")


async def test_info_is_valid(subject: Subject) -> None:
    """`info` is an `EngineInfo` for this contract, with a context, and all its fields are of their types."""
    info = subject.engine.info
    assert isinstance(info, EngineInfo)
    assert 1 <= info.contract <= CONTRACT
    assert type(info.context_length) is int
    assert info.context_length > 0
    assert isinstance(info.sampling, SamplingParams)
    assert all(isinstance(text, str) for text in (info.dtype, info.device, info.fingerprint, info.tool_parser))
    assert all(isinstance(text, str) for text in (*info.adapters, *info.notes))


async def test_capabilities_hang_together(subject: Subject) -> None:
    """An engine generates (from some kind of prompt) or embeds; what a capability rests on is declared, too."""
    declared = subject.info.capabilities
    assert isinstance(declared, frozenset)
    assert all(isinstance(capability, Capability) for capability in declared)
    assert declared & {Capability.GENERATE, Capability.EMBED}, "it neither generates nor embeds"
    assert Capability.GENERATE not in declared or declared & PROMPT_KINDS, "it generates, but takes no kind of prompt"
    for capability in declared & RESTS_ON.keys():
        assert RESTS_ON[capability] <= declared, f"{capability} rests on {RESTS_ON[capability] - declared}"
    assert bool(subject.info.adapters) <= (Capability.ADAPTERS in declared), "adapters, but not declared"


async def test_declares_no_more_than_its_backend(subject: Subject) -> None:
    """What the backend was registered with is the most that its engines declare."""
    promised = subject.target.backend.capabilities
    assert not promised or subject.info.capabilities <= promised


async def test_is_idle_when_nobody_asks(subject: Subject) -> None:
    """`current_load` is an `EngineLoad`; without requests nothing runs and nothing waits."""
    load = subject.engine.current_load()
    assert isinstance(load, EngineLoad)
    assert (load.running, load.waiting) == (0, 0)
    assert 0 <= load.kv_used_fraction <= 1
