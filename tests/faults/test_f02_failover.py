"""F1 and F2 with a second worker: whoever is killed or frozen at whatever token, the reader notices nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from fastchat_serve import Chunk
from fastchat_serve.server import HttpServer
from fastchat_serve.worker import restarts
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.process import ProcessWorker
from tests.end_to_end.waiting import queue_lengths, until
from tests.sinks import Remembering, a_request

pytestmark = pytest.mark.anyio

TEXT = "é😀 be"
TOKENS = len(TEXT.encode())
PAIR = """
[controller]
policy = "round_robin"
[api]
[[worker]]
backend = "{backend}"
{model}
names = ["m"]
placement = "process"
options = {{ {options} }}
[[worker]]
backend = "{backend}"
{model}
names = ["m"]
placement = "process"
options = {{ {options} }}
"""
ECHOES = PAIR.format(backend="echo", model="", options='split = "byte", delay_ms = 20')
SLOW_ECHOES = PAIR.format(backend="echo", model="", options='split = "byte", delay_ms = 100')
"""For the last tokens: the signal has to arrive while there is one to come."""
LATE = TOKENS - 4
HF = PAIR.format(
    backend="hf", model='model = "demo"', options='device = "cpu", dtype = "float32", prefix_cache = false'
)
"""Without a cache, as what is found in one depends on who has read the prompt before."""
LOADING_S = 60.0


class Striking(Remembering):
    """Calls `strike` once it has seen `at` tokens: at once for none."""

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        super().__init__()
        self._at, self._strike, self._struck = at, strike, False

    def push(self, chunk: Chunk) -> None:
        super().push(chunk)
        self.look()

    def look(self) -> None:
        if not self._struck and sum(len(chunk.token_ids) for chunk in self.chunks) >= self._at:
            self._struck = True
            self._strike()


@pytest.fixture(autouse=True)
def workers_may_break_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "MOST", 1000)


def signalling(server: HttpServer, number: signal.Signals) -> tuple[Callable[[], None], Callable[[], None]]:
    """What sends `number` to the process that makes an answer, and what wakes it again."""
    struck: list[int] = []

    def strike() -> None:
        for worker in server.application.workers:
            assert isinstance(worker, ProcessWorker)
            if worker.load().running and worker.pid is not None:
                struck.append(worker.pid)
                os.kill(worker.pid, number)

    def wake() -> None:
        for pid in struck if number is signal.SIGSTOP else ():
            os.kill(pid, signal.SIGCONT)

    return strike, wake


async def both_ready(server: HttpServer) -> None:
    await until(
        lambda: all(worker.state is WorkerState.READY for worker in server.application.workers), within_s=LOADING_S
    )


async def struck_answer(server: HttpServer, number: signal.Signals, at: int, **request: object) -> Striking:
    """An answer whose worker gets `number` at token `at`."""
    await both_ready(server)
    strike, wake = signalling(server, number)
    sink = Striking(at, strike)
    try:
        server.application.dispatcher.start("m", a_request(**request), sink)  # type: ignore[arg-type]
        sink.look()
        await sink.ended()
    finally:
        wake()
    return sink


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("echoes", "strikes"), [(ECHOES, range(LATE)), (SLOW_ECHOES, range(LATE, TOKENS))], ids=["early", "late"]
)
async def test_f1_f2_killed_at_every_token_the_answer_is_the_same(serving, echoes, strikes, temperature):
    async with serving(echoes) as server:
        for at in strikes:
            sink = await struck_answer(server, signal.SIGKILL, at, prompt=TEXT, temperature=temperature, seed=5)
            assert (sink.text, sink.ends) == (TEXT, [None]), at
            assert [token for chunk in sink.chunks for token in chunk.token_ids] == list(TEXT.encode())
            assert sink.chunks[-1].usage.completion_tokens == TOKENS
        await until(lambda: queue_lengths(server) == (0, 0))
        assert sum(server.application.dispatcher.moves.counts.values()) == len(strikes)


@pytest.mark.parametrize("at", [0, 4])
async def test_f3_frozen_the_answer_goes_on_elsewhere_and_no_late_token_comes(serving, at):
    async with serving(ECHOES) as server:
        sink = await struck_answer(server, signal.SIGSTOP, at, prompt=TEXT)
        await both_ready(server)
        assert (sink.text, sink.ends) == (TEXT, [None])
        await until(lambda: queue_lengths(server) == (0, 0))


async def test_f1_a_real_model_goes_on_in_another_process_as_if_nothing_had_happened(serving):
    async with serving(HF) as server:
        for temperature, at in ((0.0, 5), (1.0, 11)):
            asked = {"prompt": "Once upon a time", "max_tokens": 200, "temperature": temperature, "seed": 11}
            undisturbed = Remembering()
            server.application.dispatcher.start("m", a_request(**asked, ignore_eos=True), undisturbed)
            await undisturbed.ended()
            sink = await struck_answer(server, signal.SIGKILL, at, **asked, ignore_eos=True)
            assert sink.ends == [None]
            assert sink.text == undisturbed.text
            assert sink.chunks[-1].usage == undisturbed.chunks[-1].usage
        assert server.application.dispatcher.moves.counts["resumed"] == 2
