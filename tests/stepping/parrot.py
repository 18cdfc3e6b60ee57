"""A model that says the prompt again, a byte per step. Pure Python, and as slow and as broken as a test wants it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import Future

from fastchat_serve import Capability, EngineInfo, EngineSetup, NoOptions
from fastchat_serve.stepping import Answer, EmbedJob, News, Preparation, SteppedModel, SteppingEngine
from fastchat_serve.text import Prompts, Vocabulary

__all__ = ["CONTEXT", "END", "Bytes", "Gate", "Loader", "Parrot", "engine_with"]

END = 256
CONTEXT = 1_000_000
CAPABILITIES = frozenset({Capability.GENERATE, Capability.TEXT_PROMPT, Capability.EMBED, Capability.TOKENIZE})


class Bytes(Vocabulary):
    """A token is a byte; `END` ends an answer."""

    def __init__(self) -> None:
        super().__init__(257)

    def encode(self, text: str, *, special: bool, most: int | None = None) -> list[int]:
        return list(text.encode())[:most]

    def token_bytes(self, token_id: int) -> bytes:
        return b"<end>" if token_id == END else bytes([token_id])

    @property
    def hidden_ids(self) -> Collection[int]:
        return {END}


class Parrot:
    """The batch, and the embedder."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.answers: list[Answer] = []

    @property
    def running(self) -> int:
        return min(len(self.answers), self._loader.rows)

    @property
    def used_fraction(self) -> float:
        return self.running / self._loader.rows

    def __bool__(self) -> bool:
        return bool(self.answers)

    def add(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.answers.sort(key=lambda answer: answer.order)

    def step(self) -> list[News]:
        self._loader.on_step()
        unwanted = [answer for answer in self.answers if answer.is_unwanted(time.monotonic())]
        news = [answer.leave() for answer in unwanted]
        self.answers = [answer for answer in self.answers if answer not in unwanted]
        for answer in self.answers[: self._loader.rows]:
            place = len(answer.drawn)
            ends = place >= len(answer.prompt) and not answer.params.ignore_eos
            chunk = answer.accept(END if ends else answer.prompt[place % len(answer.prompt)], None)
            news.append(News(answer.stream, chunk, ended=chunk.finish_reason is not None))
            if chunk.finish_reason is not None:
                self.answers.remove(answer)
        return news

    def advance(self, job: EmbedJob) -> bool:
        self._loader.on_step()
        number = job.todo.pop()
        self._loader.embedded.append(job.texts[number])
        return job.found({number: [0.0, 1.0] if job.texts[number] else [1.0, 0.0]})

    def release(self) -> None:
        self.answers.clear()


class Loader:
    """Loads parrots, and knows what became of them.

    Attributes:
        model: The last one loaded, as long as it lives.
        done: What happened on which thread, in order.
        embedded: Texts, in the order in which they had their turns.
        on_load: Called while loading, with the progress.
        on_step: Called in every step.
        on_prepare: Called before a request is prepared.
    """

    def __init__(self, rows: int = 2) -> None:
        self.rows = rows
        self.model: weakref.ref[Parrot] | None = None
        self.done: list[tuple[str, str]] = []
        self.embedded: list[object] = []
        self.on_load: Callable[[EngineSetup], None] = lambda setup: None
        self.on_step: Callable[[], None] = lambda: time.sleep(0.0005)
        self.on_prepare: Callable[[str], None] = lambda id: None

    @property
    def model_lives(self) -> bool:
        return self.model is not None and self.model() is not None

    def note(self, what: str) -> None:
        self.done.append((what, threading.current_thread().name))

    def __call__(self, setup: EngineSetup) -> SteppedModel:
        self.note("load")
        self.on_load(setup)
        parrot, vocabulary = Parrot(self), Bytes()
        self.model = weakref.ref(parrot)
        prompts = Prompts(vocabulary, None, context_length=CONTEXT)
        preparation = Preparation(Answer, prompts, vocabulary, None, end_ids=frozenset({END}), adapters=("a",))

        def prepare(request, stream, accepted):  # type: ignore[no-untyped-def]
            self.on_prepare(request.id)
            return preparation.answer(request, stream, accepted)

        return SteppedModel(
            info=EngineInfo(context_length=CONTEXT, capabilities=CAPABILITIES),
            prompts=prompts,
            prepare=prepare,
            generation=parrot,
            embedder=parrot,
            close=lambda: self.note("close"),
        )

    def leave(self) -> None:
        self.note("leave, the model alive" if self.model_lives else "leave")


def engine_with(loader: Loader) -> SteppingEngine:
    setup = EngineSetup("parrot", NoOptions(), lambda stage, fraction=None: None)
    return SteppingEngine(setup, loader, name="parrot", leave=loader.leave)


class Gate:
    """Holds whoever comes, until it is opened. `reached` tells that somebody has come."""

    def __init__(self) -> None:
        self.reached: Future[None] = Future()
        self._open = threading.Event()

    def __call__(self, *_: object) -> None:
        if not self.reached.done():
            self.reached.set_result(None)
        assert self._open.wait(10), "nobody opened the gate"

    def open(self) -> None:
        self._open.set()
