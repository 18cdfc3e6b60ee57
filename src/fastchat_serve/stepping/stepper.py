"""The engine's thread: loads the model, takes in work, steps, delivers what each step brought, and closes the model.

All that touches the model happens on it, but for what prepares requests. The event loop's thread hands work in through
a queue and gets all news of a step in one call of `deliver`. Between two steps one batch of texts may be embedded; jobs
take turns.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from msgspec.structs import replace

from fastchat_serve.errors import StartupError
from fastchat_serve.hookspecs import EngineSetup
from fastchat_serve.stepping.embedding import EmbedJob
from fastchat_serve.stepping.model import Batch, Embedder, News, SteppedModel

__all__ = ["Stepper"]

logger = logging.getLogger(__name__)


class Stepper:
    """Runs until `stop`. `submit`, `wake`, `die` and `stop` may be called from any thread.

    Attributes:
        loaded: Done once the model is; or why it could not be loaded.
        model: From then on until the thread ends, which forgets it. Nobody else may keep it: its memory is to be free
            when the thread is gone.
    """

    def __init__(
        self,
        setup: EngineSetup,
        load: Callable[[EngineSetup], SteppedModel],
        leave: Callable[[], None] | None,
        *,
        name: str,
        deliver: Callable[[list[News]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        """All functions are called on the engine's thread; `died` once, if an exception ends it after loading."""
        self.loaded: Future[None] = Future()
        self.model: SteppedModel | None = None
        self._setup, self._load, self._leave = setup, load, leave
        self._deliver, self._died = deliver, died
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs: deque[EmbedJob] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Any) -> None:
        """What `SteppedModel.prepare` returned, or an `EmbedJob`."""
        self._inbox.put(work)

    def wake(self) -> None:
        """Look at the streams again: one was aborted."""
        self._inbox.put(None)

    def die(self, error: BaseException) -> None:
        """Raise `error` on the engine's thread, as if a step had."""
        self._inbox.put(error)

    def stop(self) -> None:
        """Give up loading, or end after the step under way. Nobody may use the model any more."""
        self._stopping = True
        self._inbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; False if it did not end in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ----------------------------------------------------------------------------- on the engine's thread

    def _main(self) -> None:
        try:
            self._serve()
        finally:
            if self._leave is not None:
                self._leave()

    def _serve(self) -> None:
        self.loaded.set_running_or_notify_cancel()  # or who gives up waiting would cancel it under our hands
        try:
            self.model = self._load(replace(self._setup, progress=self._progress))
        except BaseException as error:  # the thread's boundary: who waits for the model learns of it, whatever it was
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        try:
            self._run(self.model.generation, self.model.embedder)
        except BaseException as error:  # likewise: the loop's side must learn of it
            logger.critical("the engine's thread died", exc_info=error)
            _forget_frames(error)
            self._died(error)
            self._wait_for_the_end()
        model, self.model = self.model, None
        if model.generation is not None:
            model.generation.release()
        if model.close is not None:
            model.close()

    def _progress(self, stage: str, fraction: float | None = None) -> None:
        if self._stopping:
            raise StartupError("loading was cancelled")
        self._setup.progress(stage, fraction)

    def _run(self, batch: Batch | None, embedder: Embedder | None) -> None:
        while True:
            self._receive(batch)
            if self._stopping:
                return
            if batch and (news := batch.step()):
                self._deliver(news)
            if self._jobs and embedder is not None:
                job = self._jobs.popleft()
                if not (job.future.cancelled() or embedder.advance(job)):
                    self._jobs.append(job)

    def _receive(self, batch: Batch | None) -> None:
        """Take in all that came; wait if there is nothing else to do."""
        idle = not batch and not self._jobs
        while idle or not self._inbox.empty():
            work = self._inbox.get()
            idle = False
            if isinstance(work, BaseException):
                raise work
            if isinstance(work, EmbedJob):
                self._jobs.append(work)
            elif work is not None and batch is not None:
                batch.add(work)

    def _wait_for_the_end(self) -> None:
        """Requests may still be prepared, for which the model has to be there."""
        while not self._stopping:
            self._inbox.get()


def _forget_frames(error: BaseException) -> None:
    """Of `error` and all that led to it: their variables would keep the model in memory as long as the error."""
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            pending += [one.__cause__, one.__context__]
