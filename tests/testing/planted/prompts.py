"""Prompts and text: echoes, tokens, templates, characters."""

from __future__ import annotations

from msgspec.structs import replace

from fastchat_serve import ChatPrompt, Chunk, TextPrompt, TokenPrompt
from tests.testing.planted.faults import caught_by
from tests.testing.toy import ToyEngine, ToyStream


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


@caught_by("characters.resuming_within_a_character")
class ForgetsBegunCharacters(ToyStream):
    def prepare(self) -> None:
        super().prepare()
        self.decoder.reset()
