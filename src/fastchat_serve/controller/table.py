"""What a controller tells those that watch it: which nodes there are, and where they are dialled.

It holds soft state only: a controller that starts anew learns all of it from the nodes, which dial.
"""

from __future__ import annotations

from collections.abc import Callable

from fastchat_serve.protocol.watch import Joined, Left, Listing, NodeCard

__all__ = ["Table"]

Change = Joined | Left


class Table:
    """The nodes that are listed, and who is told when that changes."""

    def __init__(self) -> None:
        self._cards: dict[str, NodeCard] = {}
        self._by_address: dict[str, str] = {}
        self._watchers: dict[Callable[[Change], None], None] = {}  # in order, so that a simulation's seed is one run

    @property
    def listing(self) -> Listing:
        return Listing(tuple(self._cards.values()))

    def at(self, address: str) -> str | None:
        """The node that is listed at `address`."""
        return self._by_address.get(address)

    def add(self, card: NodeCard) -> None:
        """List a node, or list it otherwise than before."""
        if self._cards.get(card.node) == card:
            return
        self.remove(card.node)
        self._cards[card.node] = card
        if card.address:
            self._by_address[card.address] = card.node
        self._tell(Joined(card))

    def remove(self, node: str) -> None:
        """List it no more; unknown ones are passed over."""
        card = self._cards.pop(node, None)
        if card is not None:
            self._by_address.pop(card.address, None)
            self._tell(Left(node))

    def watch(self, tell: Callable[[Change], None]) -> Listing:
        """Have `tell` called for every change from now on. Returns what is listed now."""
        self._watchers[tell] = None
        return self.listing

    def unwatch(self, tell: Callable[[Change], None]) -> None:
        self._watchers.pop(tell, None)

    def _tell(self, change: Change) -> None:
        for tell in list(self._watchers):
            tell(change)
