"""What a controller says to those that watch its table, in the frames of `frames.py`."""

from __future__ import annotations

from msgspec import Struct

from fastchat_serve.protocol.link import Message, Pace, Ping

__all__ = ["Choosing", "FromController", "FromWatcher", "Joined", "Left", "Listing", "NodeCard", "Watch"]


class NodeCard(Struct, frozen=True, array_like=True):
    """A process with workers, as a controller lists it."""

    node: str
    """See `link.Hello`."""
    address: str
    """URL at which it is to be dialled; empty if it dials by itself (``reach = "out"``), or is `here`."""
    here: bool = False
    """It is the controller's own process: dial it where you dialled the controller."""


class Watch(Message, frozen=True):
    """A watcher's first message."""

    address: str = ""
    """URL at which nodes that dial by themselves reach it; empty if the controller is to take its peer's address."""
    port: int = 0
    """Where it listens, for that."""
    tls: bool = False
    """Whether it speaks TLS there."""


class Choosing(Message, frozen=True):
    """How workers are to be picked; before the first listing."""

    policy: str
    policies: dict[str, str]
    """Those of single models."""


class Listing(Message, frozen=True):
    """The whole table: the first thing that a watcher is told, after every gap."""

    nodes: tuple[NodeCard, ...]


class Joined(Message, frozen=True):
    """Came, or came back at another address."""

    card: NodeCard


class Left(Message, frozen=True):
    """Is listed no more."""

    node: str


FromWatcher = Ping | Pace | Watch
FromController = Ping | Pace | Choosing | Listing | Joined | Left
