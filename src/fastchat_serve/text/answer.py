"""From drawn tokens to the text of an answer: detokenising and stop strings in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastchat_serve.text.detokenize import TextOfTokens
from fastchat_serve.text.stop import StopStrings

__all__ = ["AnswerText"]


class AnswerText:
    """The text of one answer as its tokens are drawn: complete characters only, nothing from a stop string on."""

    def __init__(self, detokenizer: TextOfTokens, *, stops: Sequence[str] = ()) -> None:
        """`detokenizer` is a new one: `Vocabulary.detokenizer`. Raises `InvalidRequest` for an empty stop string."""
        self._detokenizer = detokenizer
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
        """The text that may go out now that `token_id` was drawn; do not feed the token that ends an answer."""
        return self._stops.feed(self._detokenizer.feed(token_id))

    def finish(self) -> str:
        """The text still held back, for an answer that ends without a match. May set `matched` after all."""
        return self._stops.feed(self._detokenizer.flush()) + self._stops.flush()
