"""The engine's thread: loads the model, takes in answers to make, steps, and delivers what each step brought.

Whatever calls mlx runs on it: arrays and streams of other threads are none of its business, nor theirs its own.
The event loop's thread hands answers in through a queue and gets all news of a step in one call of `deliver`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from fastchat_backend_mlx.answers import Answer
from fastchat_backend_mlx.generation import News
from fastchat_backend_mlx.loading import LoadedModel, leave_thread

__all__ = ["Stepper"]


class Stepper:
    """Runs until `stop`. `submit`, `wake`, `die` and `stop` may be called from any thread.

    Attributes:
        loaded: The model, or why it could not be loaded.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        *,
        deliver: Callable[[list[News]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        """All three are called on the engine's thread; `died` once, if an exception ends it after loading."""
        self.loaded: Future[LoadedModel] = Future()
        self._load, self._deliver, self._died = load, deliver, died
        self._inbox: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="fastchat-mlx-engine", daemon=True)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def start(self) -> None:
        self._thread.start()

    def submit(self, answer: Answer) -> None:
        self._inbox.put(answer)

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
            self._serve()
        finally:
            leave_thread()

    def _serve(self) -> None:
        self.loaded.set_running_or_notify_cancel()  # or who gives up waiting would cancel it under our hands
        try:
            model = self._load()
        except BaseException as error:  # the thread's boundary: who waits for the model learns of it, whatever it was
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(model)
        try:
            self._run(model)
        except BaseException as error:  # likewise: the loop's side must learn of it
            self._died(error)
        finally:
            model.generation.release()

    def _run(self, model: LoadedModel) -> None:
        generation = model.generation
        while True:
            idle = not generation
            while idle or not self._inbox.empty():
                item = self._inbox.get()
                idle = False
                if isinstance(item, BaseException):
                    raise item
                if item is not None:
                    generation.add(item)
            if self._stopping:
                return
            if news := generation.step():
                self._deliver(news)
