"""Draws: log-probabilities, sampling, seeds and resuming."""

from __future__ import annotations

import time
from typing import ClassVar

from msgspec.structs import replace

from fastchat_serve import Chunk, TokenLogprob
from fastchat_serve.text import StopStrings
from tests.testing.planted.faults import caught_by
from tests.testing.toy import Logits, ToyStream, fraction


class _Rated(ToyStream):
    def rate(self, token: TokenLogprob) -> TokenLogprob:
        raise NotImplementedError

    def draw(self) -> tuple[int, TokenLogprob | None]:
        token_id, logprob = super().draw()
        return token_id, None if logprob is None else self.rate(logprob)


@caught_by("logprobs.at_most_zero")
class RatesAboveOne(_Rated):
    def rate(self, token: TokenLogprob) -> TokenLogprob:
        return replace(token, logprob=-(token.logprob or 0.0))


@caught_by("logprobs.best_first")
class RanksTheWorstFirst(_Rated):
    def rate(self, token: TokenLogprob) -> TokenLogprob:
        return replace(token, top=token.top[::-1])


@caught_by("logprobs.as_many_alternatives_as_asked_for")
class GivesMoreAlternatives(_Rated):
    def rate(self, token: TokenLogprob) -> TokenLogprob:
        return replace(token, top=(*token.top, replace(token, token_id=0, data=b"\0", top=(), logprob=-99.0)))


@caught_by("logprobs.the_drawn_token_is_rated_once")
class RatesTheDrawnTokenTwice(_Rated):
    def rate(self, token: TokenLogprob) -> TokenLogprob:
        return replace(token, logprob=(token.logprob or 0.0) - 1.0)


@caught_by("logprobs.one_per_token")
class LosesLogprobs(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, logprobs=None if chunk.finish_reason else chunk.logprobs))


@caught_by("logprobs.before_temperature")
class RatesAfterTemperature(ToyStream):
    def logits(self, before: tuple[int, ...]) -> Logits:
        heat = self.request.sampling.temperature or 1.0
        return {token_id: logit / heat for token_id, logit in super().logits(before).items()}


class _Params(ToyStream):
    """Goes without some sampling parameters."""

    without: ClassVar[dict[str, object]]

    def prepare(self) -> None:
        self.request = replace(self.request, sampling=replace(self.request.sampling, **self.without))
        super().prepare()


@caught_by("sampling.top_k_of_one_is_greedy")
class IgnoresTopK(_Params):
    without: ClassVar = {"top_k": 0}


@caught_by("sampling.min_p_of_one_is_greedy")
class IgnoresMinP(_Params):
    without: ClassVar = {"min_p": 0.0}


@caught_by("sampling.a_tiny_top_p_is_greedy")
class IgnoresTopP(_Params):
    without: ClassVar = {"top_p": 1.0}


@caught_by("sampling.logit_bias_bans")
class IgnoresLogitBias(_Params):
    without: ClassVar = {"logit_bias": None}


@caught_by("sampling.penalties_turn_to_other_tokens")
class IgnoresPenalties(_Params):
    without: ClassVar = {"presence_penalty": 0.0, "frequency_penalty": 0.0}


@caught_by("sampling.a_repetition_penalty_turns_to_other_tokens")
class IgnoresRepetitionPenalties(_Params):
    without: ClassVar = {"repetition_penalty": 1.0}


@caught_by("seeds.other_seeds_have_other_answers")
class IgnoresSeeds(_Params):
    without: ClassVar = {"seed": 0}


@caught_by("seeds.equal_seeds_have_equal_answers")
class DrawsFromTheClock(ToyStream):
    def uniform(self, position: int) -> float:
        return fraction(str(time.monotonic_ns()))


@caught_by("seeds.batch_mates_do_not_matter")
class DrawsWithItsBatch(ToyStream):
    def uniform(self, position: int) -> float:
        return fraction(f"{super().uniform(position)} {len(self.engine.streams)}")


@caught_by("resume.greedy_at_every_cut")
class RepeatsAToken(ToyStream):
    def prepare(self) -> None:
        self.request = replace(self.request, resume_token_ids=self.request.resume_token_ids[:-1])
        super().prepare()


@caught_by("resume.greedy_at_every_cut")
class CountsOnlyTheRest(ToyStream):
    def send(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            rest = chunk.usage.completion_tokens - len(self.request.resume_token_ids)
            chunk = replace(chunk, usage=replace(chunk.usage, completion_tokens=rest))
        super().send(chunk)


@caught_by("resume.sampled_at_every_cut")
class CountsPositionsAnew(ToyStream):
    def uniform(self, position: int) -> float:
        return super().uniform(position - len(self.request.resume_token_ids))


@caught_by("resume.within_a_stop_string")
class ForgetsWhatItHeldBack(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        self.stops = StopStrings(self.request.sampling.stop)
