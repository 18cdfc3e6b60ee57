"""An engine that does whatever an engine must not do, when the prompt says so.

It answers with the prompt's words, one a token. A first word of the form ``FAULT@K`` makes it commit that
fault instead of sending token K (counted from 0); `FAULTS` lists them. So one server has good requests and bad
ones side by side. As a plugin: ``backend = "faulty"``.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Mapping
from types import MappingProxyType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from fastchat_serve import (
    CONTRACT,
    Capability,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    EngineSetup,
    FinishReason,
    GenerateRequest,
    Handle,
    NoOptions,
    Sink,
    TextPrompt,
    TokenLogprob,
    Usage,
)
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.plugins import Backend, Plugins

__all__ = ["FAULTS", "JUNK", "FaultEngine", "PushingFaultEngine", "plugins_with", "words"]


class OutOfMemoryError(RuntimeError):
    """As ``torch.OutOfMemoryError``: known by its name only."""


def token(text: Any, **more: Any) -> Chunk:
    return Chunk(text=text, token_ids=(1,), **more)


def with_logprob(value: Any) -> Chunk:
    return token("x", logprobs=(TokenLogprob(1, "x", b"x", value),))


def last(**more: Any) -> Chunk:
    return Chunk(**({"finish_reason": "stop", "usage": Usage(1, 1)} | more))


JUNK: Mapping[str, Any] = MappingProxyType(
    {
        "none": None,
        "a word for a chunk": "x",
        "a number for a chunk": 7,
        "no text": token(None),
        "bytes for text": token(b"x"),
        "a list for text": token(["x"]),
        "a lone surrogate": token("\ud800"),
        "no token ids": Chunk(text="x", token_ids=None),  # type: ignore[arg-type]
        "nan": with_logprob(math.nan),
        "inf": with_logprob(math.inf),
        "a certain lie": with_logprob(0.5),
        "words for a log-probability": with_logprob("low"),
        "an unknown finish": last(finish_reason="because"),
        "a usage below zero": last(usage=Usage(-1, 1)),
        "a usage of words": last(usage="many"),
        "a usage of fractions": last(usage=Usage(1, 1.5)),  # type: ignore[arg-type]
    }
)
"""Chunks that cannot be used. The faults ``junk-0``, ``junk-1``, … send them, in this order."""

FAULTS = ("raise", "memory", "device-memory", "hang", "hang-deaf", "cancel", "die", "end", "junk-N")
"""``end``: without a last chunk. ``hang-deaf``: until `FaultEngine.release` is set, whoever closes the stream.
``cancel``: it lets a cancellation of its own escape."""


class FaultEngine:
    """In the contract's plain form.

    Attributes:
        closed: Ids of requests whose streams have ended, in order.
        release: Lets go of what hangs and is deaf.
    """

    def __init__(self) -> None:
        self.info = EngineInfo(
            context_length=100_000,
            capabilities=frozenset(
                {
                    Capability.GENERATE,
                    Capability.TEXT_PROMPT,
                    Capability.TOKEN_PROMPT,
                    Capability.CHAT,
                    Capability.EMBED,
                    Capability.LOGPROBS,
                }
            ),
        )
        self.fatal_error: BaseException | None = None
        self.closed: list[str] = []
        self.release = anyio.Event()
        self._running = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.release.set()

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=self._running)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return Embeddings(b"\0\0\x80\x3f" * len(request.inputs), 1, len(request.inputs))

    async def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        assert isinstance(request.prompt, TextPrompt)
        fault, at, tokens = _parse(request.prompt.text)
        self._running += 1
        try:
            for number, text in enumerate(tokens):
                if number == at:
                    outcome = await self._commit(fault)
                    if outcome is _ENDS:
                        return
                    if outcome is not _GOES_ON:
                        yield outcome
                ends: FinishReason | None = "stop" if number == len(tokens) - 1 else None
                usage = Usage(len(tokens), len(tokens)) if ends else None
                yield Chunk(text=text, token_ids=(number,), finish_reason=ends, usage=usage)
                await anyio.lowlevel.checkpoint()
        finally:
            self._running -= 1
            self.closed.append(request.id)

    async def _commit(self, fault: str) -> Any:
        """What to send instead of a token, or how to go on."""
        match fault.split("-"):
            case ["raise"]:
                raise RuntimeError("no /etc/secret")
            case ["memory"]:
                raise MemoryError
            case ["device", "memory"]:
                raise OutOfMemoryError("tried to allocate 2 GiB at /dev/nvidia0")
            case ["hang"]:
                await anyio.sleep_forever()
            case ["hang", "deaf"]:
                with anyio.CancelScope(shield=True):
                    await self.release.wait()
                return _GOES_ON
            case ["cancel"]:
                raise anyio.get_cancelled_exc_class()
            case ["die"]:
                self.fatal_error = RuntimeError("the device is gone")
                raise self.fatal_error
            case ["end"]:
                return _ENDS
            case ["junk", number]:
                return list(JUNK.values())[int(number)]
        raise AssertionError(f"there is no fault {fault!r}")


_GOES_ON, _ENDS = object(), object()


class PushingFaultEngine(FaultEngine):
    """With `start` as well, and the faults of that form: what the worker's own adapter would catch.

    ``twice@K`` ends the answer twice; ``on@K`` goes on after the end, and after an abort.
    """

    async def __aenter__(self) -> Self:
        self._tasks: TaskGroup = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await super().__aexit__()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        run = _Run(self, request, sink)
        self._tasks.start_soon(run.run)
        return run


class _Run:
    """One answer of a `PushingFaultEngine`."""

    def __init__(self, engine: PushingFaultEngine, request: GenerateRequest, sink: Sink) -> None:
        self._engine, self._request, self._sink = engine, request, sink
        self._scope = anyio.CancelScope()

    def abort(self) -> None:
        self._scope.cancel()

    async def run(self) -> None:
        assert isinstance(self._request.prompt, TextPrompt)
        fault, _, tokens = _parse(self._request.prompt.text)
        error: Exception | None = None
        try:
            with self._scope:
                if fault in ("twice", "on"):
                    for number, text in enumerate(tokens, start=1):
                        self._sink.push(Chunk(text=text, token_ids=(number,)))
                    self._sink.push(last(usage=Usage(len(tokens), len(tokens))))
                else:
                    async for chunk in self._engine.generate_stream(self._request):
                        self._sink.push(chunk)
        except Exception as caught:
            error = caught
        if fault == "on":
            self._sink.push(token("and on"))
            self._sink.push(last())
        self._sink.end(error)
        if fault == "twice":
            self._sink.end(None)
            self._sink.end(RuntimeError("again"))


def words(prompt: str) -> str:
    """What a good answer to `prompt` is."""
    return "".join(_parse(prompt)[2])


def _parse(prompt: str) -> tuple[str, int, list[str]]:
    """The fault, the token that it takes the place of, and the tokens."""
    first, *rest = prompt.split(" ")
    fault, found, at = first.partition("@")
    tokens = [f"{word} " for word in (rest if found else [first, *rest])]
    return fault, int(at) if found else -1, tokens


def plugins_with(*engines: FaultEngine, kind: Callable[[], FaultEngine] = FaultEngine) -> Plugins:
    """``faulty`` gives these engines, one after the other, and then new ones of `kind`; ``echo`` is there, too."""
    given = iter(engines)
    plugins = Plugins({})
    plugins.backends["faulty"] = Backend("faulty", lambda _: next(given, None) or kind(), NoOptions, CONTRACT)
    plugins.backends["echo"] = Backend("echo", _echo, EchoOptions, CONTRACT)
    return plugins


def _echo(setup: EngineSetup) -> EchoEngine:
    assert isinstance(setup.options, EchoOptions)
    return EchoEngine(setup.options)
