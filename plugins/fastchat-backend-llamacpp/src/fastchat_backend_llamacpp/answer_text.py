"""From drawn tokens to the text of an answer, by their bytes.

llama.cpp says what bytes a token writes, so that no decoder is needed but UTF-8's.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from fastchat_serve.text import StopStrings

__all__ = ["AnswerText"]

_CONTEXT = 8
"""Tokens of the prompt's end that may hold the beginning of a character."""


class AnswerText:
    """Complete characters only, and nothing from a stop string on."""

    def __init__(self, shown: Callable[[int], bytes], *, prompt: Sequence[int], stops: Sequence[str]) -> None:
        """`shown` gives a token's bytes. A character that `prompt` began and the answer completes is the answer's.

        Raises `InvalidRequest` for an empty stop string.
        """
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(b"".join(map(shown, prompt[-_CONTEXT:])))
        self._stops = StopStrings(stops)

    @property
    def matched(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    def resume(self, token_ids: Iterable[int]) -> None:
        """Go on after tokens whose text an earlier run delivered; what that run held back still comes."""
        for token_id in token_ids:
            self.feed(token_id)

    def feed(self, token_id: int) -> str:
        """The text that may go out now that `token_id` was drawn."""
        return self._stops.feed(self._decoder.decode(self._shown(token_id)))

    def finish(self) -> str:
        """The text still held back, for an answer that ends without a match. May set `matched` after all."""
        return self._stops.feed(self._decoder.decode(b"", final=True)) + self._stops.flush()
