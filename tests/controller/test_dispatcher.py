"""Which worker gets a request, and what is said when none can."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import anyio
import msgspec
import pytest

from fastchat_serve import (
    Capability,
    ChatPrompt,
    Choice,
    EmbedRequest,
    GenerateRequest,
    JsonSchema,
    Message,
    Sink,
    TextPrompt,
    ToolSpec,
)
from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.policies import POLICIES, prefix, round_robin, shortest_queue
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engines.echo import EchoEngine, EchoOptions
from fastchat_serve.errors import ModelNotFound, Overloaded, Unavailable, Unsupported
from fastchat_serve.policy import Candidate, Draw, Policy
from fastchat_serve.worker.base import WorkerState
from fastchat_serve.worker.local import LocalWorker
from tests.garbage import cyclic_garbage
from tests.sinks import Remembering, a_request
from tests.straw import StrawWorker

pytestmark = pytest.mark.anyio

CHAT = ChatPrompt((Message(role="user", content="hello"),))
EMBED = EmbedRequest(id="embed", inputs=(TextPrompt("a"),))


def a_worker(
    *, lacking: Sequence[Capability] = (), concurrency: int = 1, queue: int = 0, loop: bool = True, speed: float = 1.0
) -> LocalWorker:
    engine = EchoEngine(EchoOptions(loop=loop, split="byte"))
    has = engine.info.capabilities - frozenset(lacking)
    engine.info = msgspec.structs.replace(engine.info, capabilities=has)
    return LocalWorker(engine, names=("m",), concurrency=concurrency, queue=queue, speed=speed)


@asynccontextmanager
async def dispatching(*workers: LocalWorker, policy: Policy = shortest_queue) -> AsyncIterator[Dispatcher]:
    registry = Registry()
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.enter_context(anyio.fail_after(20))
        for worker in workers:
            registry.add(worker)
            await tasks.start(worker.run)
            stack.callback(worker.stop)
        yield Dispatcher(registry, policy)


def start(dispatcher: Dispatcher, **request: object) -> Remembering:
    sink = Remembering()
    dispatcher.start("m", a_request(**request), sink)  # type: ignore[arg-type]
    return sink


async def test_an_unknown_model_is_not_found() -> None:
    async with dispatching(a_worker()) as dispatcher:
        with pytest.raises(ModelNotFound, match="'other'") as missing:
            dispatcher.start("other", a_request(), Remembering())
        assert (missing.value.status, missing.value.param) == (404, "model")
        with pytest.raises(ModelNotFound):
            await dispatcher.embed("other", EMBED)


async def test_the_policy_chooses_among_what_it_is_told_of_the_workers() -> None:
    seen: list[tuple[tuple[float, int], ...]] = []

    def last(candidates: Sequence[Candidate], draw: Draw) -> int:
        seen.append(tuple((candidate.speed, candidate.queue_length) for candidate in candidates))
        return len(candidates) - 1

    workers = a_worker(concurrency=9), a_worker(concurrency=9, speed=2.5)
    async with dispatching(*workers, policy=last) as dispatcher:
        start(dispatcher)
        start(dispatcher)

        assert seen == [((1.0, 0), (2.5, 0)), ((1.0, 0), (2.5, 1))]
        assert [worker.queue_length for worker in workers] == [0, 2]


@pytest.mark.parametrize("broken", [lambda candidates, draw: 99, lambda candidates, draw: 1 // 0])
async def test_requests_go_on_without_a_policy_that_fails(broken: Policy, caplog: pytest.LogCaptureFixture) -> None:
    """G13."""
    workers = a_worker(concurrency=9), a_worker(concurrency=9)
    async with dispatching(*workers, policy=broken) as dispatcher:
        start(dispatcher)
        start(dispatcher)

        assert [worker.queue_length for worker in workers] == [1, 1]
        assert "The dispatch policy failed" in caplog.text


async def test_counts_fall_when_requests_end_so_the_idle_one_is_chosen_again() -> None:
    workers = [a_worker(concurrency=100, loop=False) for _ in range(2)]
    async with dispatching(*workers) as dispatcher:
        for _ in range(50):
            await start(dispatcher).ended()
        sinks = [start(dispatcher) for _ in range(10)]

        assert [worker.queue_length for worker in workers] == [5, 5]
        for sink in sinks:
            await sink.ended()
        assert [worker.queue_length for worker in workers] == [0, 0]


async def test_round_robin_takes_turns() -> None:
    workers = [a_worker(concurrency=9) for _ in range(3)]
    async with dispatching(*workers, policy=round_robin) as dispatcher:
        for _ in range(7):
            start(dispatcher)

        assert [worker.queue_length for worker in workers] == [3, 2, 2]


@pytest.mark.parametrize("state", [WorkerState.LOADING, WorkerState.DRAINING, WorkerState.FAILED, WorkerState.STOPPED])
async def test_who_does_not_take_requests_is_passed_over(state: WorkerState) -> None:
    away, ready = a_worker(), a_worker(concurrency=9)
    async with dispatching(away, ready) as dispatcher:
        away.state = state
        for _ in range(5):
            start(dispatcher)

        assert (away.queue_length, ready.queue_length) == (0, 5)


async def test_when_all_are_down_it_says_so_and_when_to_come_back() -> None:
    workers = a_worker(), a_worker()
    async with dispatching(*workers) as dispatcher:
        workers[0].state, workers[1].state = WorkerState.DRAINING, WorkerState.FAILED
        sink = Remembering()
        with pytest.raises(Unavailable, match=r"draining, failed") as down:
            dispatcher.start("m", a_request(), sink)

        assert (down.value.status, sink.ends) == (503, [])
        assert down.value.retry_after_s is not None
        with pytest.raises(Unavailable):
            await dispatcher.embed("m", EMBED)


async def test_a_full_worker_passes_the_request_on_and_all_full_ones_refuse_it() -> None:
    def first(candidates: Sequence[Candidate], draw: Draw) -> int:
        return 0

    workers = [a_worker() for _ in range(3)]
    async with dispatching(*workers, policy=first) as dispatcher:
        for _ in workers:
            start(dispatcher)
        assert [worker.queue_length for worker in workers] == [1, 1, 1]

        sink = Remembering()
        with pytest.raises(Overloaded) as full:
            dispatcher.start("m", a_request(), sink)
        assert (full.value.status, sink.ends) == (429, [])
        assert full.value.retry_after_s == 1


async def test_a_worker_that_declines_at_the_last_moment_passes_the_request_on() -> None:
    class Declines(LocalWorker):
        def start(self, request, sink):  # type: ignore[no-untyped-def]
            raise Unavailable("just lost it")

    declining, ready = Declines(EchoEngine(), names=("m",)), a_worker()
    async with dispatching(declining, ready, policy=lambda candidates, draw: 0) as dispatcher:
        start(dispatcher)

        assert ready.queue_length == 1


async def test_embeddings_find_a_worker_that_is_not_full() -> None:
    workers = a_worker(), a_worker()
    async with dispatching(*workers, policy=lambda candidates, draw: 0) as dispatcher:
        start(dispatcher)
        assert (await dispatcher.embed("m", EMBED)).prompt_tokens == 1

        start(dispatcher)
        with pytest.raises(Overloaded):
            await dispatcher.embed("m", EMBED)


@pytest.mark.parametrize(
    ("lacking", "request_", "param"),
    [
        (Capability.LOGPROBS, a_request(logprobs=1), "logprobs"),
        (Capability.PROMPT_LOGPROBS, a_request(prompt_logprobs=1), "logprobs"),
        (Capability.CHAT, GenerateRequest(id="r", prompt=CHAT), "messages"),
        (Capability.TOOLS, GenerateRequest(id="r", prompt=ChatPrompt(CHAT.messages, (ToolSpec("f"),))), "tools"),
        (
            Capability.TOOL_CHOICE,
            GenerateRequest(id="r", prompt=ChatPrompt(CHAT.messages, (ToolSpec("f"),), tool_choice="f")),
            "tool_choice",
        ),
        (Capability.TEXT_PROMPT, a_request(), "prompt"),
        (Capability.TOKEN_PROMPT, a_request(b"ids"), "prompt"),
        (Capability.ECHO, a_request(echo=True), "echo"),
        (Capability.TOP_K, a_request(top_k=2), "top_k"),
        (Capability.MIN_P, a_request(min_p=0.5), "min_p"),
        (Capability.PENALTIES, a_request(frequency_penalty=0.5), "presence_penalty"),
        (Capability.REPETITION_PENALTY, a_request(repetition_penalty=1.5), "repetition_penalty"),
        (Capability.MIN_TOKENS, a_request(min_tokens=1), "min_tokens"),
        (Capability.STOP_TOKEN_IDS, a_request(stop_token_ids=(1,)), "stop_token_ids"),
        (Capability.IGNORE_EOS, a_request(ignore_eos=True), "ignore_eos"),
        (Capability.LOGIT_BIAS, a_request(logit_bias={1: 2.0}), "logit_bias"),
        (Capability.JSON_SCHEMA, a_request(constraint=JsonSchema({})), "response_format"),
        (Capability.CHOICE, a_request(constraint=Choice(("a",))), "structured_outputs.choice"),
        (Capability.RESUME_SAMPLED, a_request(resume_token_ids=(1,)), None),
        (Capability.RESUME_GREEDY, a_request(resume_token_ids=(1,), temperature=0.0), None),
        (Capability.ADAPTERS, a_request(adapter="x"), "model"),
        (Capability.GENERATE, a_request(), None),
    ],
    ids=lambda value: value.value if isinstance(value, Capability) else "",
)
async def test_what_no_worker_can_do_is_refused_by_name_and_not_trimmed(
    lacking: Capability, request_: GenerateRequest, param: str | None
) -> None:
    async with dispatching(a_worker(lacking=[lacking]), a_worker(lacking=[lacking])) as dispatcher:
        sink = Remembering()
        with pytest.raises(Unsupported) as refusal:
            dispatcher.start("m", request_, sink)

        assert (refusal.value.status, refusal.value.param, sink.ends) == (400, param, [])


async def test_embeddings_that_all_refuse_are_held_by_nobody() -> None:
    async with dispatching(a_worker(), a_worker()) as dispatcher:
        for _ in range(2):
            start(dispatcher)
        refused = 0
        with cyclic_garbage() as left:
            for _ in range(3):
                try:
                    await dispatcher.embed("m", EMBED)
                except Overloaded:
                    refused += 1
    assert refused == 3
    assert left == {}


async def test_embeddings_of_a_model_that_makes_none_are_refused() -> None:
    async with dispatching(a_worker(lacking=[Capability.EMBED])) as dispatcher:
        with pytest.raises(Unsupported, match="makes no embeddings"):
            await dispatcher.embed("m", EMBED)


async def test_of_mixed_workers_those_that_can_are_chosen() -> None:
    cannot, can = a_worker(lacking=[Capability.LOGPROBS], concurrency=9), a_worker(concurrency=9)
    async with dispatching(cannot, can) as dispatcher:
        for _ in range(4):
            start(dispatcher, logprobs=1)
        assert (cannot.queue_length, can.queue_length) == (0, 4)

        for _ in range(4):
            start(dispatcher)
        assert (cannot.queue_length, can.queue_length) == (4, 4)


async def test_tokenizing_goes_to_a_worker_that_can() -> None:
    async with dispatching(a_worker(lacking=[Capability.TOKENIZE]), a_worker()) as dispatcher:
        ids = await dispatcher.tokenize("m", TextPrompt("hi"))

        assert await dispatcher.detokenize("m", ids) == "hi"
        assert await dispatcher.tokenize("m", CHAT)


async def test_a_request_takes_nobodys_place_while_another_worker_has_room() -> None:
    """Though the policy would have sent it to the full one, where it had a right to a place."""

    def first(candidates: Sequence[Candidate], draw: Draw) -> int:
        return 0

    full, roomy = a_worker(queue=2), a_worker(queue=2)
    async with dispatching(full, roomy, policy=first) as dispatcher:
        greedy = [start(dispatcher, tenant="a") for _ in range(3)]
        start(dispatcher, tenant="b")
        assert (full.queue_length, roomy.queue_length) == (3, 1)
        for _ in range(2):
            start(dispatcher, tenant="b")
        assert not any(sink.ends for sink in greedy)

        start(dispatcher, tenant="c")
        assert [sink.ends != [] for sink in greedy] == [False, False, True]
        assert isinstance(greedy[2].error, Overloaded)


async def test_when_all_refuse_the_time_is_that_of_the_one_that_can_be_asked_again_first() -> None:
    workers = [a_worker(concurrency=1, queue=4), a_worker(concurrency=2, queue=0)]
    async with dispatching(*workers) as dispatcher:
        for _ in range(7):
            start(dispatcher)
        with pytest.raises(Overloaded) as refusal:
            dispatcher.start("m", a_request(), Remembering())

    assert refusal.value.retry_after_s == 1


async def test_a_model_whose_workers_load_is_unavailable_for_about_as_long_as_loading_takes() -> None:
    worker = a_worker()
    async with dispatching(worker) as dispatcher:
        worker._loading._took_s, worker._loading._began_at = 100.0, time.monotonic() - 30
        worker.state = WorkerState.LOADING
        with pytest.raises(Unavailable) as loading:
            dispatcher.start("m", a_request(), Remembering())
        worker.state = WorkerState.READY

    assert loading.value.retry_after_s == pytest.approx(70, abs=5)


async def test_the_policy_is_told_the_session_and_the_work_that_was_given_out() -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def first(candidates: Sequence[Candidate], draw: Draw) -> int:
        seen.append((draw.session, tuple(candidate.work for candidate in candidates)))
        return 0

    workers = a_worker(concurrency=9), a_worker(concurrency=9)
    async with dispatching(*workers, policy=first) as dispatcher:
        sinks = [start(dispatcher, prompt="x" * 400, max_tokens=10, session="mine") for _ in range(2)]
        for sink in sinks:
            await sink.ended()
        start(dispatcher)

        assert seen == [("mine", (0, 0)), ("mine", (111, 0)), ("", (0, 0))]


async def test_prompts_with_a_beginning_in_common_go_together() -> None:
    workers = [a_worker(concurrency=100) for _ in range(4)]
    async with dispatching(*workers, policy=prefix) as dispatcher:
        homes = []
        for topic in ("a", "b", "c"):
            handles = []
            for question in range(4):
                sink = Remembering()
                handles.append(dispatcher.start("m", a_request(topic * 2000 + str(question)), sink))
            (home,) = (worker for worker in workers if worker.queue_length == 4)
            homes.append(home.id)
            for handle in handles:
                handle.abort()
            with anyio.fail_after(10):
                while any(worker.queue_length for worker in workers):
                    await anyio.lowlevel.checkpoint()
        sink = Remembering()
        dispatcher.start("m", a_request("b" * 2000 + "again"), sink)
        assert [worker.id for worker in workers if worker.queue_length] == [homes[1]]


# ------------------------------------------------------------------------------------------- at scale


def straw(count: int, **settings: Any) -> tuple[Dispatcher, list[StrawWorker]]:
    registry, workers = Registry(), [StrawWorker(f"worker {number}", **settings) for number in range(count)]
    for worker in workers:
        registry.add(worker)
    return Dispatcher(registry, shortest_queue), workers


async def test_whoever_came_back_without_a_word_is_found_before_a_request_is_refused() -> None:
    dispatcher, workers = straw(2)
    for worker in workers:
        worker.state = WorkerState.LOST
    with pytest.raises(Unavailable):
        start(dispatcher)
    workers[1]._state = WorkerState.READY
    start(dispatcher)
    assert workers[1].queue_length == 1


async def test_a_refusal_by_many_asks_a_few() -> None:
    asked: list[str] = []

    class Full(StrawWorker):
        def start(self, request: GenerateRequest, sink: Sink) -> StrawWorker:
            asked.append(self.id)
            return super().start(request, sink)

    registry = Registry()
    for number in range(500):
        registry.add(Full(f"worker {number}", limit=0))
    with pytest.raises(Overloaded):
        start(Dispatcher(registry, shortest_queue))
    assert len(asked) == len(set(asked)) == 8


@pytest.mark.parametrize("name", POLICIES)
async def test_a_decision_among_thousands_costs_not_much_more_than_one_among_a_few(name: str) -> None:
    """Generous, for machines are shared; `nox -s bench -- dispatch` measures it."""

    def cost_s(count: int) -> float:
        registry, workers = Registry(), [StrawWorker(f"worker {number}") for number in range(count)]
        for worker in workers:
            registry.add(worker)
        dispatcher, best_s = Dispatcher(registry, POLICIES[name], Random(1)), math.inf
        for round_ in range(5):
            began = time.process_time()
            for number in range(200):
                start(dispatcher, prompt="x" * 300, session=f"{round_} {number}")
            best_s = min(best_s, time.process_time() - began)
        return best_s

    assert cost_s(2000) < 10 * cost_s(20)


async def test_each_model_can_have_a_policy_of_its_own() -> None:
    registry = Registry()
    workers = [StrawWorker(name, "a", "b") for name in ("one", "two")]
    for worker in workers:
        registry.add(worker)
    dispatcher = Dispatcher(registry, lambda candidates, draw: 0, policies={"b": lambda candidates, draw: 1})
    dispatcher.start("a", a_request(), Remembering())
    assert [worker.queue_length for worker in workers] == [1, 0]
    dispatcher.start("b", a_request(), Remembering())
    dispatcher.start("b", a_request(), Remembering())
    assert [worker.queue_length for worker in workers] == [1, 2]


async def test_how_many_answers_a_model_holds_is_counted_as_far_as_it_matters() -> None:
    dispatcher, _ = straw(4, limit=3)
    assert dispatcher.capacity("m", 100) == 12
    assert dispatcher.capacity("m", 5) == 6
