"""The engine's thread: takes in work, steps, and delivers what each step brought.

Everything that touches the model happens on it. The event loop's thread hands work in through a queue and
gets all news of a step in one call of `deliver`. Between two steps one batch of texts may be embedded; jobs take turns.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

import torch

from fastchat_backend_hf.embeddings import Embedder, EmbedJob
from fastchat_backend_hf.generation import Generation, News
from fastchat_backend_hf.sequences import TokenSequence

__all__ = ["Stepper"]


class Stepper:
    """Runs `generation` and `embedder` until `stop`. `submit`, `wake` and `stop` may be called from any thread.

    `deliver` and `died` are called on the engine's thread; `died` once, if an exception ends it.
    """

    def __init__(
        self,
        generation: Generation | None,
        embedder: Embedder | None,
        *,
        deliver: Callable[[list[News]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._generation, self._embedder = generation, embedder
        self._deliver, self._died = deliver, died
        self._inbox: queue.SimpleQueue[TokenSequence | EmbedJob | BaseException | None] = queue.SimpleQueue()
        self._jobs: deque[EmbedJob] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="fastchat-hf-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: TokenSequence | EmbedJob) -> None:
        self._inbox.put(work)

    def wake(self) -> None:
        """Look at the streams again: one was aborted."""
        self._inbox.put(None)

    def die(self, error: BaseException) -> None:
        """Raise `error` on the engine's thread, as if a step had."""
        self._inbox.put(error)

    def stop(self) -> None:
        """End after the step under way."""
        self._stopping = True
        self._inbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; False if it did not end in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                self._run()
        except BaseException as error:  # the thread's boundary: the loop's side must learn of it, whatever it was
            self._died(error)
        finally:
            if self._generation is not None:
                self._generation.release()

    def _run(self) -> None:
        while True:
            self._receive()
            if self._stopping:
                return
            if self._generation:
                self._deliver(self._generation.step())
            if self._jobs and self._embedder is not None:
                job = self._jobs.popleft()
                if not self._embedder.advance(job):
                    self._jobs.append(job)

    def _receive(self) -> None:
        """Take in all that came; wait if there is nothing else to do."""
        idle = not self._generation and not self._jobs
        while idle or not self._inbox.empty():
            work = self._inbox.get()
            idle = False
            if isinstance(work, BaseException):
                raise work
            if isinstance(work, EmbedJob):
                self._jobs.append(work)
            elif work is not None and self._generation is not None:
                self._generation.add(work)
