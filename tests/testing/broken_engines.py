"""Engines that each break the contract in one way, and the check of the kit that must notice.

All are the toy engine with something planted. As a plugin this module offers them as ``backend = "broken"``, with the
option ``fault``; without it the engine is well.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Self

import anyio
from msgspec import Struct
from msgspec.structs import replace

from fastchat_serve import (
    CONTRACT,
    Capability,
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    Engine,
    EngineError,
    EngineLoad,
    EngineSetup,
    GenerateRequest,
    InvalidRequest,
    RegisterEngine,
    Sink,
    StartupError,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    hookimpl,
)
from fastchat_serve.text import StopStrings
from tests.testing.toy import CONTEXT, EOS, Logits, ToyEngine, ToyStream, fraction

__all__ = ["FAULTS", "Fault"]


class Fault(Struct, frozen=True):
    """An engine that is broken in one way."""

    engine: type[ToyEngine]
    caught_by: str
    """The name of the check."""

    @property
    def topic(self) -> str:
        return self.caught_by.partition(".")[0]


FAULTS: dict[str, Fault] = {}


class BrokenOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    fault: str = ""
    """A name of `FAULTS`; empty: none."""


def _open(setup: EngineSetup) -> Engine:
    assert isinstance(setup.options, BrokenOptions)
    return FAULTS[setup.options.fault].engine() if setup.options.fault else ToyEngine()


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("broken", _open, contract=CONTRACT, options=BrokenOptions)


def caught_by(check: str) -> Callable[[type], type]:
    """Enter an engine, or a stream of an engine that is well, as a fault of its name."""

    def enter(kind: type) -> type:
        engine = kind if issubclass(kind, ToyEngine) else type(kind.__name__, (ToyEngine,), {"Stream": kind})
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)
        FAULTS[name.lstrip("_")] = Fault(engine, check)
        return kind

    return enter


# ------------------------------------------------------------------------------------------- opening


@caught_by("opening.opens")
class DoesNotOpen(ToyEngine):
    async def __aenter__(self) -> Self:
        raise StartupError("The model is not there.")


@caught_by("opening.opens")
class DeclaresWhatItHasNot(ToyEngine):
    embed: ClassVar[None] = None  # type: ignore[assignment]


@caught_by("opening.capabilities_hang_together")
class ResumesWithoutIds(ToyEngine):
    info = replace(ToyEngine.info, capabilities=ToyEngine.info.capabilities - {Capability.TOKEN_IDS})


@caught_by("opening.capabilities_hang_together")
class TakesNoPrompt(ToyEngine):
    info = replace(
        ToyEngine.info,
        capabilities=frozenset({Capability.GENERATE}),
        adapters=(),
    )


@caught_by("opening.is_idle_when_nobody_asks")
class IsNeverIdle(ToyEngine):
    def current_load(self) -> EngineLoad:
        return EngineLoad(running=1)


# ------------------------------------------------------------------------------------------- streams


@caught_by("streams.text_is_new")
class CumulativeText(ToyStream):
    so_far = ""

    def send(self, chunk: Chunk) -> None:
        self.so_far += chunk.text
        super().send(replace(chunk, text=self.so_far))


@caught_by("streams.characters_are_whole")
class CutsCharacters(ToyStream):
    def text_of(self, token_id: int) -> str:
        return bytes([token_id]).decode(errors="replace")


@caught_by("streams.characters_are_whole")
class SendsHalfSurrogates(ToyStream):
    def text_of(self, token_id: int) -> str:
        return super().text_of(token_id).replace("🍮", "\ud83c")


@caught_by("streams.ends_with_a_finish_reason")
class EndsSilently(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, finish_reason=None))


@caught_by("streams.finish_reason_and_usage_are_on_the_last_chunk_only")
class FinishesTwice(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(chunk)
        if chunk.finish_reason is not None:
            super().send(replace(chunk, text="", token_ids=(), logprobs=None))


@caught_by("streams.finish_reason_and_usage_are_on_the_last_chunk_only")
class GoesOnAfterTheEnd(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(chunk)
        if chunk.finish_reason is not None:
            super().send(Chunk(text="and then"))


@caught_by("streams.finish_reason_and_usage_are_on_the_last_chunk_only")
class CountsInEveryChunk(ToyStream):
    def send(self, chunk: Chunk) -> None:
        usage = self.last_chunk("", "stop", None, (), None).usage
        super().send(replace(chunk, usage=usage))


@caught_by("streams.finish_reason_and_usage_are_on_the_last_chunk_only")
class CountsNothing(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, usage=None))


@caught_by("streams.chunks_are_of_their_types")
class SendsListsOfIds(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, token_ids=list(chunk.token_ids)))


@caught_by("streams.usage_counts_every_token_id")
class ForgetsTheStopToken(ToyStream):
    def send(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            chunk = replace(chunk, usage=replace(chunk.usage, completion_tokens=chunk.usage.completion_tokens - 1))
        super().send(chunk)


@caught_by("streams.usage_counts_every_token_id")
class DoublesIds(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, token_ids=chunk.token_ids * 2))


@caught_by("streams.usage_counts_every_token_id")
class LosesIds(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, token_ids=() if len(self.drawn) == 2 else chunk.token_ids))


@caught_by("streams.text_and_ids_are_one_answer")
class TellsOtherIds(ToyStream):
    def send(self, chunk: Chunk) -> None:
        super().send(replace(chunk, token_ids=tuple(token_id ^ 1 for token_id in chunk.token_ids)))


@caught_by("streams.usage_counts_the_prompt")
class MiscountsThePrompt(ToyStream):
    def send(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            chunk = replace(chunk, usage=replace(chunk.usage, prompt_tokens=chunk.usage.prompt_tokens + 1))
        super().send(chunk)


@caught_by("streams.the_push_form_ends_exactly_once")
class EndsTwice(ToyStream):
    def finish(self, error: Exception | None) -> None:
        super().finish(error)
        self.sink.end(None)


@caught_by("streams.the_push_form_ends_exactly_once")
class PushesFromAnotherThread(ToyStream):
    def send(self, chunk: Chunk) -> None:
        pushing = threading.Thread(target=super().send, args=(chunk,))
        pushing.start()
        pushing.join()


@caught_by("streams.both_forms_say_the_same")
class SpeaksWithTwoVoices(ToyEngine):
    def generate_stream(self, request: GenerateRequest):  # type: ignore[no-untyped-def]
        return super().generate_stream(replace(request, adapter="polite"))


@caught_by("streams.greedy_answers_are_repeatable")
class DrawsByChance(ToyStream):
    count = 0

    def logits(self, before: tuple[int, ...]) -> Logits:
        DrawsByChance.count += 1
        return {ord("a") + DrawsByChance.count % 26: 0.0}


@caught_by("streams.answers_are_counted_as_load")
class HidesItsLoad(ToyEngine):
    def current_load(self) -> EngineLoad:
        return EngineLoad()


# ------------------------------------------------------------------------------------ ends and stops


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


# ------------------------------------------------------------------- prompts, tokenizer, templates


@caught_by("prompts.echo_is_in_the_first_chunk")
class EchoesInEveryChunk(ToyStream):
    def send(self, chunk: Chunk) -> None:
        echo = self.echo
        super().send(chunk)
        self.echo = echo


@caught_by("prompts.ids_are_used_as_they_are")
class AddsToIds(ToyEngine):
    def ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[int, ...]:
        return (ord("^"), *super().ids(prompt)) if isinstance(prompt, TokenPrompt) else super().ids(prompt)


@caught_by("prompts.prompt_logprobs_are_one_per_token")
class RatesTheFirstToken(ToyStream):
    def prompt_echo(self):  # type: ignore[no-untyped-def]
        echo = super().prompt_echo()
        if echo.logprobs is None:
            return echo
        return replace(echo, logprobs=(replace(echo.logprobs[0], logprob=-1.0), *echo.logprobs[1:]))


@caught_by("tokenizer.there_and_back")
class DetokenizesWrongly(ToyEngine):
    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return "".join(chr(token_id) for token_id in token_ids)


@caught_by("chat.every_turn_is_rendered")
class DropsTheSystemTurn(ToyEngine):
    def rendered(self, prompt: ChatPrompt) -> str:
        others = tuple(message for message in prompt.messages if message.role != "system")
        return super().rendered(replace(prompt, messages=others))


@caught_by("chat.tools_are_rendered")
class DropsTools(ToyEngine):
    def rendered(self, prompt: ChatPrompt) -> str:
        return super().rendered(replace(prompt, tools=()))


@caught_by("chat.a_begun_answer_is_left_open")
class ClosesABegunAnswer(ToyEngine):
    def rendered(self, prompt: ChatPrompt) -> str:
        return super().rendered(replace(prompt, continue_final=False))


@caught_by("chat.options_of_no_template_are_refused")
class IgnoresTemplateOptions(ToyEngine):
    def rendered(self, prompt: ChatPrompt) -> str:
        return super().rendered(replace(prompt, template_options=None))


@caught_by("chat.a_choice_of_tool_is_kept")
class CallsAnyTool(ToyStream):
    def called(self):  # type: ignore[no-untyped-def]
        return tuple(replace(call, name=self.request.prompt.tools[0].name) for call in super().called())


# --------------------------------------------------------------------------------- log-probabilities


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


# ----------------------------------------------------------------------------- sampling and resuming


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


# ----------------------------------------------------------------------- constraints and embeddings


@caught_by("constraints.choice")
class LeavesTheConstraint(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        if self.forced is not None:
            self.forced += b"!"


@caught_by("constraints.nonsense_is_refused")
class IgnoresNonsense(ToyStream):
    def prepare(self) -> None:
        try:
            super().prepare()
        except InvalidRequest:
            self.request = replace(self.request, constraint=None)
            super().prepare()


@caught_by("adapters.an_unknown_one_is_refused")
class TakesAnyAdapter(ToyStream):
    def prepare(self) -> None:
        self.request = replace(self.request, adapter=None)
        super().prepare()


class _Embedding(ToyEngine):
    def changed(self, found: Embeddings) -> Embeddings:
        raise NotImplementedError

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return self.changed(await super().embed(request))


@caught_by("embeddings.have_length_one")
class DoesNotNormalise(_Embedding):
    def changed(self, found: Embeddings) -> Embeddings:
        return replace(found, data=bytes(3) + bytes([found.data[3] | 0x40]) + found.data[4:])


@caught_by("embeddings.are_float32")
class EmbedsInHalves(_Embedding):
    def changed(self, found: Embeddings) -> Embeddings:
        return replace(found, data=found.data[::2])


@caught_by("embeddings.are_in_order")
class SwapsInputs(ToyEngine):
    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await super().embed(replace(request, inputs=request.inputs[::-1]))


@caught_by("embeddings.too_long_is_refused")
class TruncatesUnasked(ToyEngine):
    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await super().embed(replace(request, truncate=True))


# ------------------------------------------------------------------------------ context and bad input


@caught_by("context.a_prompt_too_long_is_refused")
class CutsLongPrompts(ToyStream):
    def prepare(self) -> None:
        ids = self.engine.ids(self.request.prompt)
        if len(ids) >= CONTEXT:
            self.request = replace(self.request, prompt=TokenPrompt(ids[-CONTEXT // 2 :]))
        super().prepare()


@caught_by("context.an_answer_too_long_is_refused")
class RaisesWhatPythonRaises(ToyStream):
    def prepare(self) -> None:
        try:
            super().prepare()
        except InvalidRequest as error:
            raise EngineError(f"ValueError: {error}") from None


@caught_by("context.an_answer_too_long_is_refused")
class RefusesLate(ToyStream):
    def finish(self, error: Exception | None) -> None:
        if isinstance(error, InvalidRequest) and not self.ended:
            self.sink.push(Chunk())
        super().finish(error)


@caught_by("bad_input.ids_of_no_token")
class TakesAnyId(ToyEngine):
    def ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[int, ...]:
        if isinstance(prompt, TokenPrompt):
            prompt = TokenPrompt(tuple(token_id % EOS for token_id in prompt.token_ids))
        return super().ids(prompt)


@caught_by("bad_input.half_a_character_in_the_prompt")
class ReplacesHalfCharacters(ToyEngine):
    def ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[int, ...]:
        try:
            return super().ids(prompt)
        except InvalidRequest:
            if isinstance(prompt, ChatPrompt) and prompt.messages and not prompt.template_options:
                return tuple(self.rendered(prompt).encode(errors="replace"))
            raise


@caught_by("bad_input.messages_tell_no_secrets")
class TellsPaths(ToyStream):
    def finish(self, error: Exception | None) -> None:
        if isinstance(error, InvalidRequest):
            error = InvalidRequest(f'File "/usr/lib/python3/site-packages/toy.py": {error}')
        super().finish(error)


# --------------------------------------------------------------- cancelling, concurrency, life and death


@caught_by("cancel.closing_after_every_chunk")
class KeepsWhatIsClosed(ToyStream):
    def finish(self, error: Exception | None) -> None:
        super().finish(error)
        if self.aborted:
            self.engine.streams.add(self)


@caught_by("cancel.aborting_after_every_chunk")
class IgnoresAborts(ToyStream):
    def abort(self) -> None:
        """Goes on."""


@caught_by("cancel.aborting_after_every_chunk")
class SpeaksAfterAnAbort(ToyStream):
    def abort(self) -> None:
        if not (self.aborted or self.ended):
            self.sink.push(Chunk(text="one more"))
        super().abort()


@caught_by("cancel.aborting_after_every_chunk")
class SaysNothingOfAborts(ToyStream):
    def finish(self, error: Exception | None) -> None:
        if self.aborted:
            self.engine.streams.discard(self)
        else:
            super().finish(error)


@caught_by("cancel.while_others_go_on")
class AbortsEverybody(ToyStream):
    def abort(self) -> None:
        for stream in tuple(self.engine.streams):
            ToyStream.abort(stream)


@caught_by("concurrency.each_as_if_alone")
class MixesAnswersUp(ToyStream):
    def logits(self, before: tuple[int, ...]) -> Logits:
        others = [stream for stream in self.engine.streams if stream is not self and hasattr(stream, "drawn")]
        return super().logits((*before, *others[0].drawn[-1:]) if others else before)


@caught_by("concurrency.a_slow_reader_holds_nobody_up")
class WaitsForSlowReaders(ToyEngine):
    """One answer at a time, and the next when the last chunk was read."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = anyio.Lock()

    start = None  # type: ignore[assignment]  # a worker has to pull

    async def generate_stream(self, request: GenerateRequest):  # type: ignore[no-untyped-def,override]
        chunks: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()

        class Queueing:
            def push(self, chunk: Chunk) -> None:
                chunks.put_nowait(chunk)

            def end(self, error: Exception | None) -> None:
                chunks.put_nowait(error)

        async with self.turn:
            handle = ToyEngine.start(self, request, Queueing())
            try:
                while isinstance(item := await chunks.get(), Chunk):
                    yield item
                if item is not None:
                    raise item
            finally:
                handle.abort()
                while self.streams:  # noqa: ASYNC110
                    await asyncio.sleep(0)


@caught_by("concurrency.the_loop_is_free")
class BlocksTheLoop(ToyStream):
    def draw(self) -> tuple[int, TokenLogprob | None]:
        if len(self.drawn) == 5:
            time.sleep(0.3)
        return super().draw()


@caught_by("death.ends_all_streams")
class DiesUnseen(ToyEngine):
    def die(self) -> None:
        self.end_all("The engine died.")


@caught_by("death.ends_all_streams")
class LeavesStreamsBehind(ToyEngine):
    def die(self) -> None:
        self.fatal_error = RuntimeError("told to die")
        for stream in self.streams:
            stream.ended = True


@caught_by("unloading.ends_its_streams")
class ClosesOverItsStreams(ToyEngine):
    async def __aexit__(self, *exc_info: object) -> None:
        for stream in self.streams:
            stream.ended = True


@caught_by("unloading.leaves_nothing_behind")
class LeaksThreads(ToyEngine):
    async def __aenter__(self) -> Self:
        threading.Thread(target=threading.Event().wait, daemon=True, name="toy").start()
        return self


@caught_by("unloading.leaves_nothing_behind")
class LeaksTasks(ToyEngine):
    tasks: ClassVar[list[asyncio.Task[None]]] = []

    async def __aenter__(self) -> Self:
        self.tasks.append(asyncio.create_task(asyncio.sleep(3600)))
        return self


@caught_by("unloading.leaves_nothing_behind")
class LeaksDescriptors(ToyEngine):
    files: ClassVar[list[object]] = []

    async def __aenter__(self) -> Self:
        self.files.append(open("/dev/null"))  # noqa: ASYNC230, SIM115
        return self


@caught_by("unloading.can_be_cancelled")
class CannotBeCancelled(ToyEngine):
    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(8)


@caught_by("unloading.another_answers_alike")
class LearnsFromItsPast(ToyEngine):
    lives = 0

    async def __aenter__(self) -> Self:
        LearnsFromItsPast.lives += 1
        self.voice = str(LearnsFromItsPast.lives)
        return self

    def start(self, request: GenerateRequest, sink: Sink):  # type: ignore[no-untyped-def]
        voice = replace(request, adapter="polite" if self.voice != "1" else None)
        return super().start(voice, sink)
