"""One run: requests come by the trace, the real dispatcher sends them to simulated workers, and ends are counted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, repeat
from random import Random
from typing import Final, cast, overload

from fastchat_serve.controller.dispatcher import Dispatcher
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engine import Chunk, SamplingParams, TokenPrompt
from fastchat_serve.errors import ConfigError, ModelNotFound, ServeError
from fastchat_serve.policy import Policy
from fastchat_serve.simulation.outcome import Outcome
from fastchat_serve.simulation.plan import Fleet, Goal, Plan
from fastchat_serve.simulation.timeline import Timeline
from fastchat_serve.simulation.trace import Arrival
from fastchat_serve.simulation.worker import Power, SimulatedRequest, SimulatedWorker

__all__ = ["Broken", "Simulation"]

_TICK: Final = 1000
"""Requests between two calls of `progress`."""


class Broken(AssertionError):
    """The ledger does not balance: a request had no end, or two, or not the tokens that it asked for."""


class Simulation:
    """One policy's run.

    Args:
        arrivals: By time.
        progress: Called now and then with how many requests have come.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        policy: Policy,
        arrivals: Iterator[Arrival],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.timeline = Timeline()
        self._plan, self._arrivals, self._progress = plan, arrivals, progress
        registry = Registry()
        self.workers = [worker for fleet in enumerate(plan.fleet) for worker in self._workers_of(*fleet)]
        for worker in self.workers:
            registry.add(worker)
        self.dispatcher = Dispatcher(registry, policy, Random(f"policy {plan.seed}"), clock=self.timeline.clock)
        self._failures = Random(f"failures {plan.seed}")
        self.outcome = Outcome(policy=name, failed=Counter(), queueing_s=array("d"), first_token_s=array("d"))
        self._under_way = 0
        self._all_came = False

    def run(self) -> Outcome:
        """To the last end.

        Raises:
            ConfigError: The trace asks for a model that no worker serves, or cannot be read.
            Broken: The simulation, or what it runs, has a mistake.
        """
        self._plan_failures()
        self._plan_arrival()
        self.timeline.run(until=lambda: self._all_came and not self._under_way)
        if self._under_way:
            raise Broken(f"{self._under_way} requests never ended")
        return self._sum_up()

    # ---------------------------------------------------------------------------------- requests

    def _plan_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._all_came = True
            self._progress(self.outcome.requests)
        else:
            self.timeline.at(arrival.at_s / self._plan.speedup, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        outcome = self.outcome
        outcome.requests += 1
        if outcome.requests % _TICK == 0:
            self._progress(outcome.requests)
        client = _Client(self, arrival)
        request = SimulatedRequest(
            id=str(outcome.requests),
            prompt=TokenPrompt(cast("tuple[int, ...]", _TokenIds(arrival, outcome.requests))),
            sampling=SamplingParams(max_tokens=arrival.output_tokens),
            session=arrival.session,
            arrival=arrival,
            granted=client.granted,
        )
        self._under_way += 1
        try:
            self.dispatcher.start(arrival.model, request, client)
        except ModelNotFound:
            raise ConfigError(f"the trace asks for {arrival.model!r}, which no worker of the fleet serves") from None
        except ServeError:
            client.ended = True
            self._under_way -= 1
            outcome.refused += 1
        self._plan_arrival()

    def ended(self, client: _Client, error: Exception | None) -> None:
        """A request that was accepted has ended."""
        outcome, arrival = self.outcome, client.arrival
        if client.ended:
            raise Broken(f"a request ended twice: {arrival}")
        client.ended = True
        self._under_way -= 1
        outcome.seconds = self.timeline.now
        if error is not None:
            outcome.failed[getattr(error, "code", None) or type(error).__name__] += 1
            return
        if client.tokens != arrival.output_tokens:
            raise Broken(f"{client.tokens} tokens came for {arrival}")
        outcome.done += 1
        outcome.output_tokens += client.tokens
        outcome.good += _is_good(client, self.timeline.now, self._plan.goal)

    # ----------------------------------------------------------------------------------- workers

    def _workers_of(self, number: int, fleet: Fleet) -> Iterator[SimulatedWorker]:
        power = Power(
            slots=fleet.concurrency,
            queue=fleet.queue,
            queue_s=fleet.queue_s,
            prefill_tokens_per_s=fleet.prefill_tokens_per_s,
            decode_tokens_per_s=fleet.decode_tokens_per_s,
            batch_tokens_per_s=fleet.batch_tokens_per_s,
            cache_tokens=fleet.cache_tokens,
        )
        for place in range(fleet.count):
            yield SimulatedWorker(f"{number}-{place}", fleet.names, power, self.timeline, speed=fleet.speed)

    def _plan_failures(self) -> None:
        workers = iter(self.workers)
        for fleet in self._plan.fleet:
            own = [next(workers) for _ in range(fleet.count)]
            for place, at_s in enumerate(sorted(fleet.kill_at_s)):
                self.timeline.at(at_s, own[place % len(own)].lose, fleet.repair_s)
            if fleet.mtbf_s is not None:
                for worker in own:
                    self.timeline.at(self._failures.expovariate(1 / fleet.mtbf_s), self._fail, worker, fleet)

    def _fail(self, worker: SimulatedWorker, fleet: Fleet) -> None:
        assert fleet.mtbf_s is not None
        worker.lose(fleet.repair_s)
        self.timeline.after(fleet.repair_s + self._failures.expovariate(1 / fleet.mtbf_s), self._fail, worker, fleet)

    # -------------------------------------------------------------------------------------------------

    def _sum_up(self) -> Outcome:
        outcome = self.outcome
        outcome.queueing_s = array("d", sorted(outcome.queueing_s))
        outcome.first_token_s = array("d", sorted(outcome.first_token_s))
        outcome.moves = Counter(self.dispatcher.moves.counts)
        outcome.loads = sorted((worker.tokens / worker.speed for worker in self.workers), reverse=True)
        outcome.longest_queue = max(worker.longest_queue for worker in self.workers)
        outcome.lost_workers = sum(worker.restarts for worker in self.workers)
        outcome.prompt_tokens = sum(worker.prompts for worker in self.workers)
        outcome.cached_tokens = sum(worker.cached for worker in self.workers)
        return outcome


class _Client:
    """Who asked: the sink of one answer."""

    __slots__ = ("_run", "_waits", "arrival", "came_at", "ended", "first_at", "tokens")

    def __init__(self, run: Simulation, arrival: Arrival) -> None:
        self._run, self.arrival = run, arrival
        self.came_at = run.timeline.now
        self.first_at: float | None = None
        self.tokens = 0
        self.ended = False
        self._waits = True

    def granted(self) -> None:
        if self._waits:
            self._waits = False
            self._run.outcome.queueing_s.append(self._run.timeline.now - self.came_at)

    def push(self, chunk: Chunk) -> None:
        if self.ended:
            raise Broken(f"a token came after the end of {self.arrival}")
        if self.first_at is None and chunk.token_ids:
            self.first_at = self._run.timeline.now
            self._run.outcome.first_token_s.append(self.first_at - self.came_at)
        self.tokens += len(chunk.token_ids)

    def end(self, error: Exception | None) -> None:
        self._run.ended(self, error)


def _is_good(client: _Client, now: float, goal: Goal) -> bool:
    assert client.first_at is not None
    if goal.first_token_s is not None and client.first_at - client.came_at > goal.first_token_s:
        return False
    written, seconds = client.tokens - 1, now - client.first_at
    return goal.tokens_per_s is None or written >= goal.tokens_per_s * seconds


class _TokenIds(Sequence[int]):
    """Of a prompt: equal as far as blocks are, and different from all others after them.

    Made when somebody looks at them: most policies do not, and prompts are long.
    """

    __slots__ = ("_arrival", "_number")

    def __init__(self, arrival: Arrival, number: int) -> None:
        self._arrival, self._number = arrival, number

    def __len__(self) -> int:
        return self._arrival.prompt_tokens

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        size, blocks = self._arrival.block_tokens, self._arrival.blocks
        shared = chain.from_iterable(repeat(block, size) for block in blocks)
        return tuple(islice(chain(shared, repeat(-self._number)), len(self)))[index]
