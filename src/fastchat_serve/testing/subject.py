"""The engine under test, opened as a server opens it, and the ways in which checks talk to it.

One engine is open at a time, inside a real `LocalWorker` that a real `Dispatcher` knows. Checks drive the engine
itself, in either form of the stream, or go through the dispatcher where the server is part of a guarantee.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeVar

import anyio
import psutil
import pytest
from msgspec import Struct
from msgspec.structs import replace

from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.policies import round_robin
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engine import (
    Capability,
    ChatPrompt,
    Chunk,
    Embeds,
    Engine,
    EngineInfo,
    GenerateRequest,
    Message,
    Renders,
    SamplingParams,
    TextPrompt,
    Tokenizes,
    TokenPrompt,
)
from fastchat_serve.progress import LogProgress
from fastchat_serve.push import Pusher
from fastchat_serve.testing.answers import Answer, SinkOfAnswer, read_push, read_stream, vary
from fastchat_serve.testing.marks import FORMS
from fastchat_serve.testing.resources import Resources, children, settled
from fastchat_serve.testing.target import Target
from fastchat_serve.text.tools import TOOL_PARSERS, ToolCallDelta
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.local import LocalWorker

__all__ = ["MANY_BYTES", "MODEL", "POLL_S", "PROMPTS", "Settings", "Subject"]

_T = TypeVar("_T")

MODEL = "model"
"""The name under which the dispatcher knows the engine."""

PROMPTS = (
    "Once upon a time a small fox lived near the river, and every morning she went out to count the boats, the birds "
    "and the clouds above them.",
    "Zoë ordered crème brûlée 🍮 in 東京, then flew to Москва ✈️ with 한국 friends 👩‍🚀👨‍👩‍👧 and said: नमस्ते, שלום, "
    "Γειά σου, y ¡adiós! It was – “naïve” – a good day…",
    "Count from one to twenty in words, one after the other, and do not stop before: one two three four five six seven",
)
"""Long enough that an engine which repeats its prompt has something to say; the second is full of long characters."""

MANY_BYTES = 1
"""The index of the prompt whose characters take several bytes."""

REOPENINGS = 3
"""An engine that more checks than this leave broken or busy is not opened again: loading may take a minute."""

POLL_S = 0.002


class Settings(Struct, frozen=True, kw_only=True):
    """What the command line says about the run."""

    wait_s: float = 60.0
    """For one answer."""
    grace_s: float = 5.0
    """For an engine to let go of an aborted request."""
    tokens: int = 24
    """Length of answers."""
    concurrency: int = 8
    """Streams at once."""
    exact: bool = True
    """Equal greedy requests have equal answers, whatever else the engine works on."""


class Subject:
    """See the module.

    Attributes:
        engine: The one that is open.
        worker: Around it.
        dispatcher: Around the worker; the model's name there is `MODEL`.
        notes: What the check that runs has measured.
        held: What was held after each engine that was `alone`.
        others: Processes that were children of this one before any engine was.
        load_s, loaded_mb: What opening took, in time and memory of this process.
        last_info: `info`, or None if no engine was ever open.
    """

    engine: Engine
    worker: LocalWorker
    dispatcher: Dispatcher

    def __init__(self, target: Target, settings: Settings) -> None:
        self.target, self.settings = target, settings
        self.notes: list[str] = []
        self.held: list[Resources] = []
        self.others = {child.pid for child in children()}
        self.load_s, self.loaded_mb = 0.0, 0
        self.last_info: EngineInfo | None = None
        self._runner = asyncio.Runner(loop_factory=_loop_factory())
        self._ids = count()
        self._life: asyncio.Task[None] | None = None
        self._breakages = 0
        self._failure: Exception | None = None
        self._baselines: dict[int, Answer] = {}

    # ---------------------------------------------------------------------------------- life cycle

    def run(self, check: Coroutine[Any, Any, _T]) -> _T:
        """Run one check to its end, in the loop that all share."""
        return self._runner.run(check)

    async def load(self) -> None:
        """Have an engine open, well and idle. Raises what opening raised."""
        if self._life is not None:
            broken = self.worker.state is not WorkerState.READY
            if not broken and (self._breakages == REOPENINGS or await self._is_idle()):
                return
            if self._breakages == REOPENINGS:
                raise RuntimeError("the engine was left broken too often")
            self._breakages += 1
        if self._failure is not None:
            raise self._failure
        await self.unload()
        began, memory = time.monotonic(), psutil.Process().memory_info().rss
        try:
            self.engine = self.fresh()
            await self._begin()
        except Exception as failure:  # the boundary to the engine under test
            self._failure = failure
            raise
        self.load_s, self.last_info = time.monotonic() - began, self.engine.info
        self.loaded_mb = max(self.loaded_mb, (psutil.Process().memory_info().rss - memory) >> 20)

    async def unload(self) -> None:
        """Close the engine, if one is open."""
        if self._life is not None:
            life, self._life = self._life, None
            self._closing.set()
            with anyio.fail_after(2 * self.settings.wait_s):
                await asyncio.wait({life})
            life.result()

    def finish(self) -> None:
        """Close the engine and the loop."""
        try:
            self.run(self.unload())
        finally:
            self._runner.close()

    async def _begin(self) -> None:
        self._closing, opened = asyncio.Event(), asyncio.Event()
        self.worker = LocalWorker(self.engine, names=(MODEL,), concurrency=self.settings.concurrency)
        registry = Registry()
        registry.add(self.worker)
        self.dispatcher = Dispatcher(registry, round_robin)
        life = asyncio.create_task(self._live(opened))
        telling = asyncio.create_task(opened.wait())
        await asyncio.wait({life, telling}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.is_set():
            telling.cancel()
            await life  # raises why
        registry.add(self.worker)  # again, with its adapters
        self._life = life

    async def _live(self, opened: asyncio.Event) -> None:
        async with anyio.create_task_group() as life:
            try:
                await life.start(self.worker.run)
            except Exception as failure:  # the boundary to the engine under test; raised when the group is left
                problem: Exception | None = failure
            else:
                problem = None
                async with anyio.create_task_group() as streams:
                    self._pusher = Pusher(self.engine, streams)
                    opened.set()
                    await self._closing.wait()
                    streams.cancel_scope.cancel()
                self.worker.stop()
        if problem is not None:
            raise problem

    def fresh(self) -> Engine:
        """Another engine, not open yet."""
        return self.target.make(LogProgress())

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Engine]:
        """Another engine, open, instead of the one under test; what its life leaves behind is added to `held`."""
        await self.unload()
        async with self.fresh() as engine:
            yield engine
        self.held.append(await settled(self.held[-1] if self.held else None, self.settings.grace_s))

    # ------------------------------------------------------------------------------------ requests

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself when it was opened last."""
        assert self.last_info is not None, "no engine was ever open"
        return self.last_info

    def can(self, *capabilities: Capability) -> bool:
        return self.info.capabilities.issuperset(capabilities)

    @property
    def tokenizer(self) -> Tokenizes:
        assert isinstance(self.engine, Tokenizes)
        return self.engine

    @property
    def renderer(self) -> Renders:
        assert isinstance(self.engine, Renders)
        return self.engine

    @property
    def embedder(self) -> Embeds:
        assert isinstance(self.engine, Embeds)
        return self.engine

    def parsed_calls(self, text: str) -> list[tuple[str, str]]:
        """Names and arguments of the calls in `text`, in the form that the engine says its model writes."""
        parser = TOOL_PARSERS[self.info.tool_parser]()
        events = [*parser.feed(text), *parser.finish()]
        return [(event.name, event.arguments) for event in events if isinstance(event, ToolCallDelta)]

    def note(self, text: str) -> None:
        """Tell the reader of the report what was measured."""
        self.notes.append(text)

    def prompt(self, text: str = PROMPTS[0], *, times: int = 1) -> ChatPrompt | TextPrompt | TokenPrompt:
        """`text`, so many times over, in a form that the engine takes; one that takes ids only is given some."""
        if self.can(Capability.CHAT):
            return ChatPrompt((Message(role="user", content=text * times),))
        if self.can(Capability.TEXT_PROMPT):
            return TextPrompt(text * times)
        return TokenPrompt((*range(10, 10 + 16 * times), len(text)))

    def request(
        self, prompt: ChatPrompt | TextPrompt | TokenPrompt | str = PROMPTS[0], /, **fields: Any
    ) -> GenerateRequest:
        """A greedy request of `Settings.tokens` tokens; `fields` may be of `GenerateRequest` and `SamplingParams`."""
        shape = self.prompt(prompt) if isinstance(prompt, str) else prompt
        sampling = SamplingParams(temperature=0.0, max_tokens=self.settings.tokens)
        return self.again(GenerateRequest(id="", prompt=shape, sampling=sampling), **fields)

    def again(self, request: GenerateRequest, **changes: Any) -> GenerateRequest:
        """`request` with other fields, under an id of its own."""
        return vary(replace(request, id=f"conformance-{next(self._ids)}"), **changes)

    # ------------------------------------------------------------------------------------- answers

    async def read(self, request: GenerateRequest, form: str = "generator") -> Answer:
        """The answer, or as much of it as there was before its error."""
        with anyio.fail_after(self.settings.wait_s):
            if form == "generator":
                return await read_stream(self.engine, request)
            return (await read_push(self._pusher.start, request)).answer

    async def answer(self, request: GenerateRequest, form: str = "generator") -> Answer:
        """The whole answer. Raises the error that ended it instead."""
        return (await self.read(request, form)).whole()

    async def push(self, request: GenerateRequest) -> SinkOfAnswer:
        """The answer in the push form, with how the sink was treated."""
        with anyio.fail_after(self.settings.wait_s):
            return await read_push(self._pusher.start, request)

    def begin(self, request: GenerateRequest, on_push: Callable[[Chunk], None] | None = None) -> SinkOfAnswer:
        """Begin an answer in the push form; `SinkOfAnswer.abort` ends it early."""
        sink = SinkOfAnswer(request, on_push)
        sink.handle = self._pusher.start(request, sink)
        return sink

    def dispatch(self, request: GenerateRequest) -> SinkOfAnswer:
        """Begin an answer as the server does: dispatcher, worker, slot, engine. Raises what the dispatcher raises."""
        sink = SinkOfAnswer(request)
        sink.handle = self.dispatcher.start(MODEL, request, sink)
        return sink

    async def together(self, requests: Sequence[GenerateRequest]) -> list[Answer]:
        """The answers to all of `requests`, which run at the same time, every other one in the push form."""
        answers: dict[int, Answer] = {}

        async def read(index: int, request: GenerateRequest) -> None:
            answers[index] = await self.read(request, FORMS[index % 2])

        async with anyio.create_task_group() as tasks:
            for index, request in enumerate(requests):
                tasks.start_soon(read, index, request)
        return [answers[index] for index in range(len(requests))]

    async def until(self, event: Awaitable[_T]) -> _T:
        """Wait for what takes no longer than an answer."""
        with anyio.fail_after(self.settings.wait_s):
            return await event

    async def refusal(self, request: GenerateRequest, form: str = "generator") -> Exception:
        """The error that `request` is answered with before any chunk."""
        answer = await self.read(request, form)
        assert answer.error is not None, f"it was answered, with {answer.text[:60]!r}"
        assert not answer.chunks, f"the error came after {len(answer.chunks)} chunks"
        return answer.error

    @property
    def knows_greedy(self) -> bool:
        """`greedy` needs no engine any more, at least for the first prompt."""
        return 0 in self._baselines

    async def greedy(self, index: int) -> Answer:
        """The greedy answer to one of `PROMPTS`, asked for once and by itself."""
        if index not in self._baselines:
            self._baselines[index] = await self.answer(self.request(PROMPTS[index]))
        return self._baselines[index]

    async def baseline(self, *, characters: int = 0) -> Answer:
        """The longest of the greedy answers, which others are compared with; skips if it has too little text.

        Of a model of few words, one that goes on after its end, if the engine can.
        """
        answers = [await self.greedy(index) for index in range(len(PROMPTS))]
        longest = max(answers, key=lambda answer: (len(answer.text), answer.usage.completion_tokens))
        if len(longest.text) < characters and self.can(Capability.IGNORE_EOS):
            longest = await self.answer(self.again(longest.request, ignore_eos=True))
        if len(longest.text) < characters:
            pytest.skip(f"the longest answer has {len(longest.text)} characters")
        return longest

    def expect_same(self, actual: Answer, expected: Answer, what: str = "the answer") -> None:
        """Both have the same text and ids, and the same end."""
        self.expect_equal(actual.text, expected.text, f"the text of {what}")
        self.expect_equal(actual.token_ids, expected.token_ids, f"the ids of {what}")
        self.expect_equal(actual.finish_reason, expected.finish_reason, f"the finish reason of {what}")
        self.expect_equal(
            actual.usage.completion_tokens, expected.usage.completion_tokens, f"the completion tokens of {what}"
        )

    def expect_equal(self, actual: object, expected: object, what: str) -> None:
        """As ``assert``; where the engine is not exact, a difference is noted."""
        if self.settings.exact:
            assert actual == expected, f"{what} is another: {actual!r} instead of {expected!r}"
        elif actual != expected:
            self.note(f"{what} is another")

    # ---------------------------------------------------------------------------------------- load

    async def _is_idle(self) -> bool:
        try:
            await self.idle()
        except AssertionError:
            return False
        return True

    @property
    def busy(self) -> int:
        """Requests that the engine says it has; none if it is closed."""
        if self._life is None:
            return 0
        load = self.engine.current_load()
        return load.running + load.waiting

    async def idle(self) -> float:
        """Wait until the engine has let go of everything. Seconds that it took."""
        began = time.monotonic()
        while self.busy:
            waited = time.monotonic() - began
            assert waited < self.settings.grace_s, f"after {waited:.1f} s the engine still holds {self.busy} requests"
            await anyio.sleep(POLL_S)
        return time.monotonic() - began


def _loop_factory() -> Any:
    """The server's loop."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
