"""Pick a worker for a request, by policy, among those that can take it."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from fastchat_serve.controller.failover import Moves, MovingAnswer
from fastchat_serve.controller.prefixes import Prefixes, marks
from fastchat_serve.controller.registry import Registry
from fastchat_serve.engine import (
    Capability,
    ChatPrompt,
    Choice,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Grammar,
    Handle,
    JsonObject,
    JsonSchema,
    Regex,
    Sink,
    TextPrompt,
    constraint_param,
    required_capabilities,
)
from fastchat_serve.errors import ModelNotFound, Overloaded, ServeError, Unavailable, Unsupported
from fastchat_serve.policy import Candidate, Draw, Policy
from fastchat_serve.worker.base import Worker, WorkerState

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

_PARAM: Mapping[Capability, str] = MappingProxyType(
    {
        Capability.CHAT: "messages",
        Capability.TEXT_PROMPT: "prompt",
        Capability.TOKEN_PROMPT: "prompt",
        Capability.TOOLS: "tools",
        Capability.TOOL_CHOICE: "tool_choice",
        Capability.ECHO: "echo",
        Capability.TOP_K: "top_k",
        Capability.MIN_P: "min_p",
        Capability.PENALTIES: "presence_penalty",
        Capability.REPETITION_PENALTY: "repetition_penalty",
        Capability.MIN_TOKENS: "min_tokens",
        Capability.STOP_TOKEN_IDS: "stop_token_ids",
        Capability.IGNORE_EOS: "ignore_eos",
        Capability.ADAPTERS: "model",
        Capability.EMBED: "model",
        Capability.LOGPROBS: "logprobs",
        Capability.PROMPT_LOGPROBS: "logprobs",
        Capability.LOGIT_BIAS: "logit_bias",
        Capability.JSON_OBJECT: constraint_param(JsonObject),
        Capability.JSON_SCHEMA: constraint_param(JsonSchema),
        Capability.REGEX: constraint_param(Regex),
        Capability.GRAMMAR: constraint_param(Grammar),
        Capability.CHOICE: constraint_param(Choice),
    }
)
_ADVICE: Mapping[Capability, str] = MappingProxyType(
    {
        Capability.CHAT: "it has no chat template. Use /v1/completions, or configure a template if its backend can",
        Capability.GENERATE: "it makes embeddings only. Use /v1/embeddings",
        Capability.EMBED: "it makes no embeddings",
        Capability.TEXT_PROMPT: "its engine takes messages only. Use /v1/chat/completions",
        Capability.TOKEN_PROMPT: "its engine takes no token ids",
        Capability.ADAPTERS: "another worker of this name has it as an adapter",
    }
)


class Dispatcher:
    """See the module.

    Args:
        registry: The workers.
        policy: Chooses among those that are ready and able.
        rng: Where policies draw chance from.
        prefixes: What workers have read, for policies that ask for it; None for others.

    Attributes:
        moves: Of answers whose worker was lost, or failed, and that went on elsewhere (`failover.py`).
    """

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        rng: random.Random | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.registry = registry
        self.moves = Moves()
        self._policy, self._prefixes = policy, prefixes
        self._random = rng or random.Random()
        self._turns: Counter[str] = Counter()

    def start(self, model: str, request: GenerateRequest, sink: Sink) -> Handle:
        """Begin an answer on one of the model's workers.

        Raises:
            ModelNotFound, Unsupported, Unavailable, Overloaded: `sink` was not touched.
        """
        if len(self.registry.serving(model)) < 2:  # it could move nowhere
            return self.able(model, required_capabilities(request))[0].start(request, sink)
        return MovingAnswer(request, sink, find=partial(self._find, model), moves=self.moves).start()

    def capacity(self, model: str) -> int:
        """Answers that the model's ready workers hold at most, running and waiting. Raises as `able` does."""
        loads = [worker.load() for worker in self.able(model)]
        return sum(load.slots + load.queue_limit for load in loads)

    async def embed(self, model: str, request: EmbedRequest) -> Embeddings:
        """Embed on one of the model's workers. Raises as `start` does, and what the engine raises."""
        refusals: list[ServeError] = []
        for worker in self._in_turn(model, self.able(model, frozenset({Capability.EMBED}))):
            if model in worker.adapters:
                raise Unsupported(f"{model!r} is an adapter, which makes no embeddings.", param="model")
            try:
                return await worker.embed(request)
            except Overloaded as error:
                refusals.append(error)
        raise _soonest(refusals)

    async def tokenize(self, model: str, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        needed = {Capability.TOKENIZE} | ({Capability.CHAT} if isinstance(prompt, ChatPrompt) else set())
        return await self._choose(model, self.able(model, frozenset(needed))).tokenize(prompt)

    async def detokenize(self, model: str, token_ids: tuple[int, ...]) -> str:
        return await self._choose(model, self.able(model, frozenset({Capability.TOKENIZE}))).detokenize(token_ids)

    def able(self, model: str, needed: frozenset[Capability] = frozenset()) -> Sequence[Worker]:
        """The ready workers of a model that have all capabilities that are needed; at least one."""
        workers = self.registry.serving(model)
        if not workers:
            raise ModelNotFound(model)
        if len(workers) == 1 and workers[0].state is WorkerState.READY and needed <= workers[0].info.capabilities:
            return workers
        ready = [worker for worker in workers if worker.state is WorkerState.READY]
        if not ready:
            states = ", ".join(sorted({worker.state.value for worker in workers}))
            raise Unavailable(
                f"Model {model!r} cannot be served now ({states}). Try again later.",
                retry_after_s=min(worker.back_in_s for worker in workers),
            )
        able = [worker for worker in ready if needed <= worker.info.capabilities]
        if not able:
            raise _unsupported(model, needed - ready[0].info.capabilities)
        return able

    def _find(self, model: str, request: GenerateRequest, tried: frozenset[str], fingerprint: str) -> Iterator[Worker]:
        """See `failover.Find`. Raises as `able` does."""
        able = self.able(model, required_capabilities(request))
        fitting = [
            worker
            for worker in able
            if worker.id not in tried and (not fingerprint or worker.info.fingerprint == fingerprint)
        ]
        wanted = () if self._prefixes is None else marks(request)
        for worker in self._in_turn(model, fitting, request.session, wanted):
            if self._prefixes is not None:
                self._prefixes.note(wanted, worker.id)
            yield worker

    def _in_turn(
        self, model: str, workers: Sequence[Worker], session: str = "", wanted: Sequence[int] = ()
    ) -> Iterator[Worker]:
        """The policy's choice, then its choice among the others, and so on.

        Full ones come last: a request that could go elsewhere takes nobody's place in a queue.
        """
        for group in ([w for w in workers if not w.full], [w for w in workers if w.full]):
            while group:
                worker = self._choose(model, group, session, wanted)
                yield worker
                group.remove(worker)

    def _choose(self, model: str, workers: Sequence[Worker], session: str = "", wanted: Sequence[int] = ()) -> Worker:
        if len(workers) == 1:
            return workers[0]
        known: Mapping[str, int] = {}
        if self._prefixes is not None and wanted:
            known = self._prefixes.known(wanted, (worker.id for worker in workers))
        work = self.moves.work
        candidates = [
            Candidate(worker.id, worker.speed, worker.queue_length, work[worker.id], known.get(worker.id, 0))
            for worker in workers
        ]
        draw = Draw(self._random, self._turns[model], session)
        self._turns[model] += 1
        try:
            return workers[self._policy(candidates, draw)]
        except Exception:  # the boundary to a plugin's policy: requests go on without it
            logger.exception("The dispatch policy failed; the worker with the shortest queue is taken.")
            return min(workers, key=lambda worker: worker.queue_length)


def _soonest(refusals: Sequence[ServeError]) -> ServeError:
    """Of the workers that refused, the one that can be asked again first. There was at least one worker."""
    return min(refusals, key=lambda refusal: refusal.retry_after_s or 0.0)


def _unsupported(model: str, missing: frozenset[Capability]) -> Unsupported:
    first = min(missing)
    why = _ADVICE.get(first, f"its engine does not offer {', '.join(sorted(missing))}")
    return Unsupported(f"Model {model!r} cannot do this: {why}.", param=_PARAM.get(first))
