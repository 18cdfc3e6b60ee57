"""Ends: where an answer stops, why, and what is told of it."""

from __future__ import annotations

from msgspec.structs import replace

from fastchat_serve import Chunk
from fastchat_serve.text import StopStrings
from tests.testing.planted.faults import caught_by
from tests.testing.toy import EOS, Logits, ToyStream


@caught_by("finish.max_tokens_is_the_length")
class DrawsOneTooMany(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        self.limit += 1


@caught_by("finish.a_stop_comes_before_max_tokens")
class SaysLengthForStop(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, finish_reason=chunk.finish_reason and "length"))


@caught_by("finish.one_token")
class SaysStopForLength(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, finish_reason=chunk.finish_reason and "stop"))


@caught_by("finish.a_stop_token_ends_the_answer")
class DoesNotSayWhatStopped(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, stop_match=None))


@caught_by("finish.no_stop_token_is_in_the_text")
class ShowsTheStopToken(ToyStream):
    def send(self, chunk: Chunk) -> None:
        if isinstance(chunk.stop_match, int):
            chunk = replace(chunk, text=chunk.text + chr(chunk.stop_match))
        super().send(chunk)


@caught_by("finish.ignore_eos_goes_on")
class HeedsEos(ToyStream):
    def penalised(self, raw: Logits) -> Logits:
        self.request = replace(self.request, sampling=replace(self.request.sampling, ignore_eos=False))
        return {EOS: 0.0} if len(self.drawn) > 40 else super().penalised(raw)


@caught_by("finish.min_tokens_hold_for_stop_token_ids")
class IgnoresMinTokens(ToyStream):
    def penalised(self, raw: Logits) -> Logits:
        self.request = replace(self.request, sampling=replace(self.request.sampling, min_tokens=0))
        return super().penalised(raw)


@caught_by("stops.anywhere")
class LeaksStopStrings(ToyStream):
    def send(self, chunk: Chunk) -> None:
        if isinstance(chunk.stop_match, str):
            chunk = replace(chunk, text=chunk.text + chunk.stop_match)
        super().send(chunk)


class _PerChunk:
    """Looks for stop strings within each piece of text only."""

    matched: str | None = None

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops

    def feed(self, text: str) -> str:
        self.matched = next((stop for stop in self._stops if stop in text), None)
        return text.partition(self.matched)[0] if self.matched else text

    def flush(self) -> str:
        return ""


@caught_by("stops.across_chunks")
class MissesStopsAcrossCuts(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        self.stops = _PerChunk(self.request.sampling.stop)


class _Forgetful(StopStrings):
    def flush(self) -> str:
        super().flush()
        return ""


@caught_by("stops.a_near_miss_is_sent")
class LosesWhatItHeldBack(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        self.stops = _Forgetful(self.request.sampling.stop)


@caught_by("stops.the_first_of_several")
class KnowsOneStopString(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        self.stops = StopStrings(self.request.sampling.stop[:1])


@caught_by("stops.nothing_comes_after")
class SpeaksAfterAStop(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(chunk)
        if isinstance(chunk.stop_match, str):
            super().send(Chunk(text=" more"))
