"""Opening and streams: what an engine says of itself, and what a chunk must be."""

from __future__ import annotations

import threading
from typing import ClassVar, Self

from msgspec.structs import replace

from fastchat_serve import Capability, Chunk, EngineLoad, GenerateRequest, StartupError
from tests.testing.planted.faults import caught_by
from tests.testing.toy import Logits, ToyEngine, ToyStream


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
