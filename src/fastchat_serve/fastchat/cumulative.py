"""What is new in a text that arrives whole again and again, as FastChat's workers send it.

Two things at its end are not final yet: U+FFFD, which stands for a character that is not complete, and a space that
transformers' clean-up may join with what follows ("do n" becomes "don't"). Both are held back until they are settled.
"""

from __future__ import annotations

__all__ = ["Cumulative"]

_INCOMPLETE = "\ufffd"
_UNSETTLED = (" ", " n", " n'", " '", " ' ", " 'v", " 'r")
"""Beginnings of what the clean-up rewrites: a space before . ? ! , ' n't 'm 's 've 're."""


class Cumulative:
    """One answer.

    Attributes:
        text: All that was handed out.
        rewritten: The sender took back what had been handed out already.
    """

    def __init__(self) -> None:
        self.text = ""
        self.rewritten = False
        self._whole = ""

    def feed(self, whole: str) -> str:
        """What is new and settled in the text so far."""
        self._whole = whole
        settled = whole.rstrip(_INCOMPLETE)
        for ending in _UNSETTLED:
            if settled.endswith(ending):
                settled = settled.removesuffix(ending)
                break
        return self._hand_out(settled)

    def finish(self) -> str:
        """The rest, once nothing follows."""
        return self._hand_out(self._whole)

    def _hand_out(self, text: str) -> str:
        if not text.startswith(self.text):
            if len(text) <= len(self.text) and self.text.startswith(text):
                return ""  # a part that was settled is held back again
            self.rewritten = True
        new = text[len(self.text) :]
        self.text += new
        return new
