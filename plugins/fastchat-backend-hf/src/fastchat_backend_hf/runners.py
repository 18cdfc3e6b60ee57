"""How forward passes are made: what a runner is, for the rows of a batch and the prompts that become rows.

`batch_runner.py` takes all rows in one pass, `solo.py` has runners for models whose rows cannot share one. A runner
holds the key-value caches of the rows under way, numbered 0 to n-1. A context is opened, read in blocks, and joins as
the last row; `decode` adds one token to each row; `drop` puts the last row in the place of the one that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from fastchat_backend_hf.reading import Reading

__all__ = ["Block", "Context", "RowFailed", "Runner"]


class RowFailed(Exception):
    """One row of a pass failed, for the exception's cause; the others are well."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} failed")
        self.row = row


class Context(NamedTuple):
    """What is known of an answer when its row begins."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """Not empty when the answer is resumed, or was put back and starts again."""
    salt: tuple[str, ...] | None = None
    """Contexts with the same one may share what is known of a common beginning; None shares nothing."""
    adapter: str | None = None
    """What the row goes through; None: the model alone."""


class Block(NamedTuple):
    """At most so many tokens more of a context."""

    reading: Reading
    most: int


class Runner(Protocol):
    """Forward passes for rows that come and go."""

    @property
    def used_fraction(self) -> float:
        """Of the cache's budget, by rows and contexts being read."""
        ...

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether contexts of these lengths can be held together."""
        ...

    def open(self, context: Context) -> Reading:
        """A context to be read. Takes no memory yet."""
        ...

    def recall(self, reading: Reading) -> None:
        """Take over what is known by now of the context's next tokens."""
        ...

    def read(self, readings: Sequence[Reading], most: int) -> None:
        """Read at most so many tokens more, in one pass: of one, or of several whole ones that nothing is read of.

        After an exception they stand where they stood.
        """
        ...

    def score(self, reading: Reading, most: int) -> Tensor:
        """`read` for one; logits of all positions that were read, ``[tokens, vocabulary]``."""
        ...

    def join(self, reading: Reading) -> None:
        """Make a row of what is read to the end. After an exception nothing has changed."""
        ...

    def close(self, reading: Reading) -> None:
        """Give up what does not become a row."""
        ...

    def decode(self, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Tensor:
        """One token more for every row; logits ``[rows, vocabulary]`` in the model's dtype. Reads `blocks` as well.

        After an exception it may be repeated, without the row that is dropped for it. Raises `RowFailed` if
        that must be a certain one.
        """
        ...

    def keep(self, row: int, tokens: Sequence[int]) -> None:
        """`row` holds these tokens and is about to end well: others may begin alike."""
        ...

    def drop(self, row: int) -> None:
        """End a row."""
        ...

    def scrub(self, row: int) -> None:
        """Clear a row whose values are not finite, so that nobody inherits them."""
        ...

    def synchronize(self) -> None:
        """Wait until the device is done, so that time can be taken."""
        ...

    def shrink(self) -> bool:
        """Memory ran out: hold no more than is needed. True if that is less than before, so that a retry may do."""
        ...

    def release(self) -> None:
        """End all rows and readings and give the memory back."""
        ...
