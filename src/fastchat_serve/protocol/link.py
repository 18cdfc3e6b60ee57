"""What two processes of ours say to each other on a link: typed messages, whose contents are the contract's own types.

One end calls, the other hosts workers. Streams and calls are numbered by the caller. How messages are written is in
`frames.py`; how they travel, and what a silent or lost link means, is `worker/link.py`'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Raw, Struct

from fastchat_serve import errors
from fastchat_serve.engine import (
    ChatPrompt,
    Chunk,
    Embeddings,
    EmbedRequest,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    TextPrompt,
)
from fastchat_serve.errors import EngineError, ServeError

__all__ = [
    "VERSION",
    "Abort",
    "Callers",
    "Delta",
    "Deltas",
    "Detokenize",
    "Done",
    "Embed",
    "Embedded",
    "Ended",
    "Fault",
    "FromCaller",
    "FromHost",
    "Generate",
    "Gone",
    "Grant",
    "Hello",
    "Leaving",
    "Load",
    "Message",
    "Obey",
    "Open",
    "Order",
    "Pace",
    "Piece",
    "Ping",
    "Progress",
    "Refuse",
    "Rejected",
    "Statement",
    "Stop",
    "Text",
    "Tokenize",
    "Tokens",
    "Unopened",
    "Wake",
    "Welcome",
    "WrittenDeltas",
]

VERSION: Final = 1
"""Of these messages, and of `worker.host.size_of`, by which both ends count. Peers of another version are told so when
they dial."""


class Message(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """What all have in common."""


class Fault(Struct, frozen=True, array_like=True):
    """A `ServeError` on its way."""

    kind: str
    message: str
    code: str | None
    param: str | None
    retry_after_s: float | None

    @classmethod
    def of(cls, error: ServeError) -> Fault:
        """A kind of a plugin's own goes as the one of ours that it is."""
        kind = next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
        return cls(kind, str(error), error.code, error.param, error.retry_after_s)

    def error(self) -> ServeError:
        """The error that was sent; one of a kind that is not known here counts as the engine's."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, ServeError)):
            kind = EngineError
        error = kind.__new__(kind)  # some kinds word their message from other arguments
        ServeError.__init__(error, self.message, param=self.param, code=self.code, retry_after_s=self.retry_after_s)
        return error


class Ping(Message, frozen=True):
    """Said by either end that has had nothing to say for a while."""


class Pace(Message, frozen=True):
    """From now on both ends ping at this interval. Said by whoever calls: it knows how many links it has to watch."""

    ping_s: Annotated[float, Meta(ge=0.01, le=60)]


# ------------------------------------------------------------------------------------- the caller's


class Open(Message, frozen=True):
    """To a child: the worker that it is to make. First of all, and once."""

    id: str
    worker: dict[str, Any]
    """The table ``[[worker]]``, its options checked and complete."""
    plugins: tuple[str, ...]
    log_level: str


class Generate(Message, frozen=True):
    stream: int
    worker: str
    request: GenerateRequest


class Embed(Message, frozen=True):
    call: int
    worker: str
    request: EmbedRequest


class Tokenize(Message, frozen=True):
    call: int
    worker: str
    prompt: TextPrompt | ChatPrompt


class Detokenize(Message, frozen=True):
    call: int
    worker: str
    token_ids: tuple[int, ...]


class Wake(Message, frozen=True):
    """Have this worker loaded, if it is loaded on demand; `Done` once it takes requests."""

    call: int
    worker: str


Order = Literal["drain", "unload", "reload", "alias", "unalias", "load"]
"""What an operator may want of a worker; with ``load`` it is one more beside it."""


class Obey(Message, frozen=True):
    """An operator wants this of a worker; `Done` once it is."""

    call: int
    worker: str
    order: Order
    name: str = ""
    """The alias."""
    table: dict[str, Any] | None = None
    """The ``[[worker]]`` that is to be loaded, in JSON."""


class Abort(Message, frozen=True):
    """Nobody wants this stream or the result of this call any more. `Ended` follows as for any other."""

    number: int


class Grant(Message, frozen=True):
    """So many more bytes of this stream may come."""

    stream: int
    size: int


class Refuse(Message, frozen=True):
    """To a child: take no new work."""


class Stop(Message, frozen=True):
    """To a child: end what is under way, close the engine, leave."""


class Welcome(Message, frozen=True):
    """To a node that has dialled in: it is listed here."""

    callers: tuple[str, ...] = ()
    """Where a node has to dial that nobody can dial, besides here: URLs."""


class Callers(Message, frozen=True):
    """These have changed."""

    urls: tuple[str, ...]


class Rejected(Message, frozen=True):
    """To a node that has dialled in: it is not listed, for a reason that its operator can mend."""

    reason: str
    again: bool = False
    """It is listed already, over another link that is well; then there is nothing to mend."""


FromCaller = (
    Ping
    | Pace
    | Open
    | Generate
    | Embed
    | Tokenize
    | Detokenize
    | Wake
    | Obey
    | Abort
    | Grant
    | Refuse
    | Stop
    | Welcome
    | Callers
    | Rejected
)


# --------------------------------------------------------------------------------------- the host's


class Hello(Message, frozen=True):
    """Who hosts here. A node's first message, whoever has dialled."""

    node: str
    """Names one life of one process."""
    incarnation: int
    """Grows with every link of the node, whoever dialled it: of two to one peer, the lower is a leftover."""
    contract: int
    """Of engines: `engine.CONTRACT`."""
    version: str
    """Of fastchat-serve."""
    address: str = ""
    """URL at which it says that it can be dialled; empty: at none."""


class Leaving(Message, frozen=True):
    """The node takes no new work, and will be gone once it has done what it has accepted."""


class Gone(Message, frozen=True):
    """The node has this worker no more."""

    worker: str


class Progress(Message, frozen=True):
    """How far a child is with loading; see `hookspecs.Progress`."""

    stage: str
    fraction: float | None


class Unopened(Message, frozen=True):
    """The child's engine could not be opened; it is for the operator to read."""

    problem: str


Count = Annotated[int, Meta(ge=0)]


class Statement(Message, frozen=True):
    """What a worker is. Sent at the beginning, and whenever any of it has changed."""

    worker: str
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    adapters: tuple[str, ...]
    speed: float
    state: str
    reason: str
    info: EngineInfo | None
    """None until the engine is open."""
    tool_parser: str
    slots: Count
    queue_limit: Count
    restarts: Count
    protocol_errors: Count
    back_in_s: Annotated[float, Meta(ge=0, le=1e9)]
    wakes: bool = False
    """See `worker.base.Worker`."""
    stage: str = ""
    fraction: float | None = None
    """Of its loading; see `hookspecs.Progress`."""


class Load(Message, frozen=True):
    """How busy a worker is. Comes with the end of every stream, and whenever it has changed."""

    worker: str
    running: Count
    waiting: Count
    of_caller: Count
    """How many of these two are this link's."""
    engine: EngineLoad


class Delta(Struct, frozen=True, array_like=True, gc=False):
    stream: int
    text: str
    token_ids: tuple[int, ...]


class Deltas(Message, frozen=True):
    """Chunks that have nothing but text and ids: nearly all."""

    of: list[Delta]


class WrittenDeltas(Message, frozen=True, tag="Deltas"):
    """The same, as hosts send it."""

    of: list[Raw]


class Piece(Message, frozen=True):
    """A chunk with more to it."""

    stream: int
    chunk: Chunk


class Ended(Message, frozen=True):
    """Nothing of this stream or call is held any more, and nothing of it follows."""

    number: int
    fault: Fault | None = None


class Embedded(Message, frozen=True):
    call: int
    embeddings: Embeddings


class Tokens(Message, frozen=True):
    call: int
    token_ids: tuple[int, ...]


class Text(Message, frozen=True):
    call: int
    text: str


class Done(Message, frozen=True):
    """What was asked for has happened, and has no other result."""

    call: int
    done: bool = True


FromHost = (
    Ping
    | Pace
    | Hello
    | Leaving
    | Gone
    | Progress
    | Unopened
    | Statement
    | Load
    | Deltas
    | Piece
    | Ended
    | Embedded
    | Tokens
    | Text
    | Done
)
