"""An engine that says the last line in capitals. A token is a character, and its id the code point."""

from collections.abc import AsyncGenerator
from typing import Self

import anyio

from example_backend import CAPABILITIES, ExampleOptions
from fastchat_serve import (
    ChatPrompt,
    Chunk,
    ContextOverflow,
    EngineInfo,
    EngineLoad,
    EngineSetup,
    GenerateRequest,
    InvalidRequest,
    TextPrompt,
    Usage,
)
from fastchat_serve.text import ChatTemplate, StopStrings, check_text

CONTEXT_LENGTH = 4096
TEMPLATE = "{% for message in messages %}<{{ message.role }}>\n{{ message.content }}\n{% endfor %}"


class ExampleEngine:
    fatal_error: BaseException | None = None  # nothing here can break for good

    def __init__(self, setup: EngineSetup) -> None:
        assert isinstance(setup.options, ExampleOptions)
        self._options, self._progress, self._running = setup.options, setup.progress, 0
        self.info = EngineInfo(context_length=CONTEXT_LENGTH, capabilities=CAPABILITIES)

    async def __aenter__(self) -> Self:
        self._template = ChatTemplate(TEMPLATE, special_tokens={})
        self._progress("loading", 1.0)  # a real engine loads its model here, in a thread
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing to unload."""

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=self._running)

    async def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        prompt, sampling = self._text(request.prompt), request.sampling
        room = CONTEXT_LENGTH - len(prompt)
        limit = room if sampling.max_tokens is None else sampling.max_tokens
        if room < max(limit, 1):
            raise ContextOverflow(limit=CONTEXT_LENGTH, prompt_tokens=len(prompt), max_tokens=sampling.max_tokens)

        answer = prompt.splitlines()[-1].upper() + self._options.suffix
        stop, count = StopStrings(sampling.stop), 0
        self._running += 1
        try:
            for character in answer[:limit]:
                await anyio.sleep(self._options.delay_ms / 1000)  # a real engine waits for its next token here
                count += 1
                yield Chunk(text=stop.feed(character), token_ids=(ord(character),))
                if stop.matched is not None:
                    break
            complete = stop.matched is not None or count == len(answer)
            yield Chunk(
                text=stop.flush(),  # what was held back, if no stop string came of it
                finish_reason="stop" if complete else "length",
                stop_match=stop.matched,
                usage=Usage(len(prompt), count),
            )
        finally:  # the end, an error, or an abort
            self._running -= 1

    def _text(self, prompt: object) -> str:
        """What the model would read. Raises `InvalidRequest`."""
        if isinstance(prompt, ChatPrompt):
            text = self._template.render(prompt)
        else:
            assert isinstance(prompt, TextPrompt)  # no other kind is declared
            text = prompt.text
        check_text(text, "prompt")
        if not text.strip():
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return text
