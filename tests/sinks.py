"""A sink that remembers, and the requests that tests send."""

from __future__ import annotations

from typing import Any

import anyio

from fastchat_serve import Chunk, GenerateRequest, SamplingParams, TextPrompt, TokenPrompt

__all__ = ["Remembering", "a_request"]


class Remembering:
    """Keeps what it is sent.

    Attributes:
        chunks: All chunks, in order.
        ends: The argument of every call of `end`; a good engine makes one.
    """

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.ends: list[Exception | None] = []
        self._news = anyio.Event()

    def push(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._tell()

    def end(self, error: Exception | None) -> None:
        self.ends.append(error)
        self._tell()

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def error(self) -> Exception:
        """The one error that ended it."""
        (error,) = self.ends
        assert error is not None
        return error

    async def ended(self) -> Remembering:
        """Wait for the end."""
        with anyio.fail_after(10):
            while not self.ends:
                await self._news.wait()
        return self

    async def has(self, count: int) -> Remembering:
        """Wait for this many chunks."""
        with anyio.fail_after(10):
            while len(self.chunks) < count:
                await self._news.wait()
        return self

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


def a_request(
    prompt: str | bytes = "to be or not", *, id: str = "request", max_tokens: int | None = None, **more: Any
) -> GenerateRequest:
    """Bytes become token ids. Fields of `SamplingParams` and of `GenerateRequest` can both be given."""
    fields = {name: more.pop(name) for name in list(more) if name in SamplingParams.__struct_fields__}
    sampling = SamplingParams(max_tokens=max_tokens, **fields)
    shape = TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(tuple(prompt))
    return GenerateRequest(id=id, prompt=shape, sampling=sampling, **more)
