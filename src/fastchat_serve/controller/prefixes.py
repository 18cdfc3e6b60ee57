"""Which worker has read the beginning of a prompt of late, and so may still have it in its cache.

A guess, and kept cheap: prompts are cut into blocks, each block is known by a hash of everything up to its end, and the
newest of these hashes are remembered with the workers that they were sent to. Tenants have nothing in common, as in the
caches themselves. Python's string hash has another key in every process, so nobody can make two prompts look alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from fastchat_serve.engine import ChatPrompt, GenerateRequest, TokenPrompt

__all__ = ["BLOCK", "MOST_BLOCKS", "MOST_READERS", "Prefixes", "marks"]

BLOCK: Final = 256
"""Characters of a block; of token ids a fourth."""

MOST_BLOCKS: Final = 64
"""Of one prompt. Longer ones that have so much in common go together."""

MOST_READERS: Final = 4
"""Of one block: the newest. So a decision takes no longer for a beginning that thousands of workers have read."""


class Prefixes:
    """The newest beginnings, and who has read them.

    Args:
        most: Blocks that are remembered; some hundred bytes each, and as much again for each reader.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._readers: OrderedDict[int, dict[str, None]] = OrderedDict()

    def known(self, wanted: Sequence[int]) -> dict[str, int]:
        """Who has read how many characters from the beginning of the prompt with these `marks`: those first that have
        read the most, and not many more than `MOST_READERS`."""
        known: dict[str, int] = {}
        for number in range(len(wanted), 0, -1):
            for worker in self._readers.get(wanted[number - 1], ()):
                known.setdefault(worker, number * BLOCK)
            if len(known) >= MOST_READERS:
                break
        return known

    def note(self, read: Sequence[int], worker: str) -> None:
        """The prompt with these `marks` goes to `worker`."""
        for mark in reversed(read):  # a beginning is forgotten after what follows it
            readers = self._readers.get(mark)
            if readers is None:
                self._readers[mark] = {worker: None}
                continue
            self._readers.move_to_end(mark)
            readers.pop(worker, None)
            readers[worker] = None
            if len(readers) > MOST_READERS:
                del readers[next(iter(readers))]
        while len(self._readers) > self._most:
            self._readers.popitem(last=False)


def marks(request: GenerateRequest) -> list[int]:
    """One hash for each whole block of the prompt, of all that comes before its end."""
    found = []
    mark = hash((request.tenant, request.adapter))
    for block in _blocks(request):
        mark = hash((mark, block))
        found.append(mark)
    return found


def _blocks(request: GenerateRequest) -> Iterable[str | tuple[int, ...]]:
    prompt = request.prompt
    if isinstance(prompt, TokenPrompt):
        size = BLOCK // 4
        ids = prompt.token_ids[: MOST_BLOCKS * size]
        return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    text = _beginning(prompt) if isinstance(prompt, ChatPrompt) else prompt.text[: MOST_BLOCKS * BLOCK]
    return [text[start : start + BLOCK] for start in range(0, len(text) - BLOCK + 1, BLOCK)]


def _beginning(prompt: ChatPrompt) -> str:
    """Of the conversation: tools first, as templates have them."""
    parts, left = [], MOST_BLOCKS * BLOCK
    if prompt.tools:
        parts.append("".join(f"{tool.name}{tool.description}{tool.parameters}" for tool in prompt.tools)[:left])
        left -= len(parts[0])
    for message in prompt.messages:
        if left <= 0:
            break
        parts.append(f"\0{message.role}\0{message.text}")
        left -= len(parts[-1])
    return "".join(parts)[: MOST_BLOCKS * BLOCK]
