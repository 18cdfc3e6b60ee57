"""Pick a worker for a request, by policy, among those that can take it."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final

from fastchat_serve.controller.decisions import Decision, Decisions, Search
from fastchat_serve.controller.failover import Moves, MovingAnswer, raise_soonest
from fastchat_serve.controller.members import Member
from fastchat_serve.controller.policies import prefix
from fastchat_serve.controller.pools import NOTHING_KNOWN, Pool, Standing
from fastchat_serve.controller.prefixes import Prefixes, marks
from fastchat_serve.controller.registry import Registry
from fastchat_serve.controller.served import Served
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
from fastchat_serve.errors import Overloaded, ServeError, Unavailable, Unsupported
from fastchat_serve.policy import Draw, Policy
from fastchat_serve.worker.base import Worker, WorkerState

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

_ANY: Final[frozenset[Capability]] = frozenset()
_EMBED: Final = frozenset({Capability.EMBED})
_MOST_FULL: Final = 8
"""Full workers that are asked whether they have a place after all."""

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
        policies: Those of models that have another one.
        clock: Monotonic time in seconds.

    Attributes:
        moves: Of answers whose worker was lost, or failed, and that went on elsewhere (`failover.py`).
        decisions: The last ones.
    """

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        rng: random.Random | None = None,
        *,
        policies: Mapping[str, Policy] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.moves = Moves(clock)
        self.decisions = Decisions()
        self._note = self.decisions.note
        self._policy, self._policies = policy, policies
        self._prefixes = Prefixes()
        self._random = rng or random.Random()
        self._turns: Counter[str] = Counter()

    def choose_by(self, policy: Policy, policies: Mapping[str, Policy]) -> None:
        """Go by these from now on, in place of those that it was made with."""
        self._policy, self._policies = policy, policies

    def start(self, model: str, request: GenerateRequest, sink: Sink, policy: Policy | None = None) -> Handle:
        """Begin an answer on one of the model's workers, chosen by `policy` if it is not to be the model's.

        Raises:
            ModelNotFound, Unsupported, Unavailable, Overloaded: `sink` was not touched.
        """
        if len(self.registry.serving(model)) < 2:  # it could move nowhere
            worker = self.an_able(model, required_capabilities(request))
            self._note(Decision(time.time(), request.id, model, worker.id))
            return worker.start(request, sink)
        return MovingAnswer(request, sink, find=partial(self._find, model, policy), moves=self.moves).start()

    def capacity(self, model: str, enough: int) -> int:
        """Answers that the model's ready workers hold at most, running and waiting; not counted further than `enough`.

        Raises as `an_able` does.
        """
        pool, found = self._able(model, _ANY), 0
        for member in chain(pool.open.members, pool.full.members):
            load = member.worker.load()
            found += load.slots + load.queue_limit
            if found >= enough:
                break
        return found

    async def embed(self, model: str, request: EmbedRequest) -> Embeddings:
        """Embed on one of the model's workers. Raises as `start` does, and what the engine raises."""
        refusals: list[ServeError] = []
        for member in self._in_turn(model, request.id, Search(self._policy_of(model), _EMBED)):
            if model in member.worker.adapters:
                raise Unsupported(f"{model!r} is an adapter, which makes no embeddings.", param="model")
            try:
                return await member.worker.embed(request)
            except Overloaded as error:
                refusals.append(error.with_traceback(None))  # that would hold us
        raise_soonest(refusals)

    async def tokenize(self, model: str, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        needed = {Capability.TOKENIZE} | ({Capability.CHAT} if isinstance(prompt, ChatPrompt) else set())
        return await self.an_able(model, frozenset(needed)).tokenize(prompt)

    async def detokenize(self, model: str, token_ids: tuple[int, ...]) -> str:
        return await self.an_able(model, frozenset({Capability.TOKENIZE})).detokenize(token_ids)

    def an_able(self, model: str, needed: frozenset[Capability] = _ANY) -> Worker:
        """A ready worker of the model that has all capabilities that are needed, one with room if there is one.

        Raises:
            ModelNotFound, Unsupported, Unavailable: There is none.
        """
        # Every request asks what such workers are: one that may have become full meanwhile will do.
        served = self.registry.seen(model)
        worker = None if served is None else served.pool(needed).any()
        if worker is not None and worker.state is WorkerState.READY and needed <= worker.info.capabilities:
            return worker
        able = self._able(model, needed).any()
        assert able is not None
        return able

    def _policy_of(self, model: str) -> Policy:
        return self._policies.get(model, self._policy)

    def _able(self, model: str, needed: frozenset[Capability]) -> Pool:
        """All of those. Raises as `an_able` does."""
        served = self.registry.look(model)
        if served is None:
            raise self.registry.missing(model)
        pool = served.pool(needed)
        if not pool.by_id:
            for member in served.members:  # whoever has not told of a change is not passed over for it
                self.registry.look_at(member)
            pool = served.pool(needed)
            if not pool.by_id:
                raise _refusal(model, served, needed)
        return pool

    def _find(
        self,
        model: str,
        policy: Policy | None,
        request: GenerateRequest,
        tried: tuple[str, ...],
        fingerprint: str,
        *,
        with_room: bool,
        why: str,
    ) -> Iterator[Member]:
        """See `failover.Find`. Raises as `an_able` does."""
        needed, policy = required_capabilities(request), policy or self._policy_of(model)
        wanted = marks(request) if policy is prefix else ()
        search = Search(policy, needed, fingerprint, tried, with_room, why, request.session, wanted)
        return self._in_turn(model, request.id, search)

    def _in_turn(self, model: str, request_id: str, search: Search) -> Iterator[Member]:
        """The policy's choice, then its choice among the others, and so on.

        Full ones come last: a request that could go elsewhere takes nobody's place in a queue. Few of them are asked,
        so that a refusal by thousands costs no more than one by a few.
        """
        full = 0
        while (chosen := self._choose(model, request_id, search)) is not None:
            if search.wanted:
                self._prefixes.note(search.wanted, chosen.id)
            yield chosen
            search.tried = (*search.tried, chosen.id)
            full += chosen.worker.full
            if full == _MOST_FULL:
                return

    def _choose(self, model: str, request_id: str, search: Search) -> Member | None:
        """The best of those that were not tried yet; None if there is none."""
        member = self._best(model, search)
        if member is not None:
            changes = self.registry.changes
            self._note(Decision(time.time(), request_id, model, member.id, search, changes, search.tried))
        return member

    def _best(self, model: str, search: Search) -> Member | None:
        pool = self._able(model, search.needed)
        if search.fingerprint and (served := self.registry.look(model)) is not None:
            pool = served.pool(search.needed, search.fingerprint)
        best = self._best_of(model, pool.open, search)
        return best if best is not None or search.with_room else self._best_of(model, pool.full, search)

    def _best_of(self, model: str, standing: Standing, search: Search) -> Member | None:
        """The policy's choice among those of `standing` that were not tried yet; None if there is none."""
        aside = standing.set_aside(search.tried) if search.tried else ()
        try:
            members = standing.members
            if len(members) < 2:
                return members[0] if members else None
            return self._decide(model, standing, search)
        finally:
            for member in aside:
                standing.add(member)

    def _decide(self, model: str, standing: Standing, search: Search) -> Member:
        search.turn = turn = self._turns[model]
        self._turns[model] = turn + 1
        if search.wanted:
            search.known = standing.known = self._prefixes.known(search.wanted)
        try:
            return standing.members[search.policy(standing, Draw(self._random, turn, search.session))]
        except Exception:  # the boundary to a plugin's policy: requests go on without it
            logger.exception("The dispatch policy failed; the worker with the shortest queue is taken.")
            return min(standing.members, key=lambda member: member.seen.queue_length)
        finally:
            standing.known = NOTHING_KNOWN


def _refusal(model: str, served: Served, needed: frozenset[Capability]) -> ServeError:
    """Why none of a model's workers is able."""
    kinds = [member.seen.kind for member in served.members if member.seen.kind is not None]
    if kinds:
        return _unsupported(model, needed - kinds[0].capabilities)
    states = ", ".join(sorted({worker.state.value for worker in served.workers}))
    return Unavailable(
        f"Model {model!r} cannot be served now ({states}). Try again later.",
        retry_after_s=min(worker.back_in_s for worker in served.workers),
    )


def _unsupported(model: str, missing: frozenset[Capability]) -> Unsupported:
    first = min(missing)
    why = _ADVICE.get(first, f"its engine does not offer {', '.join(sorted(missing))}")
    return Unsupported(f"Model {model!r} cannot do this: {why}.", param=_PARAM.get(first))
