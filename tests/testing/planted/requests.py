"""Requests: constraints, adapters, embeddings, and what ought to be refused."""

from __future__ import annotations

from msgspec.structs import replace

from fastchat_serve import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineError,
    InvalidRequest,
    TextPrompt,
    TokenPrompt,
)
from tests.testing.planted.faults import caught_by
from tests.testing.toy import CONTEXT, EOS, ToyEngine, ToyStream


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
