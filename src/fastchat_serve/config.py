"""What can be configured: one frozen, strict Struct per TOML table.

Only the shapes, their defaults and their ranges are here; `configfile` reads files into them and
says where a mistake is. The docstring under a field is its manual entry: the JSON Schema for
editors repeats it. A table that is present means that the role runs in this process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from fastchat_serve.configfile.places import KeyPath, Places
from fastchat_serve.errors import ConfigError

__all__ = [
    "Api",
    "Cluster",
    "Config",
    "Controller",
    "FastChat",
    "Limits",
    "Secret",
    "Server",
    "Tables",
    "Timeouts",
    "Worker",
]


class Secret:
    """Text that no log, error or ``repr`` shows. `reveal` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Compare it in constant time only."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret('…')"


Name = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
GraceSeconds = Annotated[float, Meta(ge=0)]
LimitSeconds = Annotated[float, Meta(gt=0)]
Url = Annotated[
    str,
    Meta(pattern=r"^https?://[^\s/?#@]+$", title="a URL of the form http://host:port, without a path"),
]
Network = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f.:]+(/[0-9]+)?$", title='a network of the form "10.0.0.0/8"')]
Origin = Annotated[
    str,
    Meta(pattern=r"^(\*|https?://[^\s/?#@]+)$", title='an origin of the form https://host:port, or "*"'),
]
HostName = Annotated[
    str,
    Meta(pattern=r"^[^\s/?#@]+$", title='a host name without scheme or path, or "*"'),
]


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """What all tables share: immutable, and no key is ignored."""


class Server(_Table, frozen=True, kw_only=True):
    """``[server]``: the socket, and what holds for every request on it."""

    host: Name = "127.0.0.1"
    """Address to listen on. Anything but loopback needs keys and a cluster token, or `insecure`."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """TCP port. 0 takes any free one; the log says which."""
    insecure: bool = False
    """Allow listening beyond loopback without keys or token. Whoever reaches the port may use it."""
    max_body_bytes: Count = 8 * 1024 * 1024
    """Largest request body; more is answered 413 while it is still being read."""
    drain_s: GraceSeconds = 30.0
    """On SIGTERM, seconds that accepted work has to finish before it is cut off."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages to log."""
    access_log: bool = False
    """Log one line per request."""
    allowed_hosts: tuple[HostName, ...] = ()
    """`Host` headers to answer, compared exactly; "*": all. Empty: loopback names, or all beyond loopback."""
    cors_origins: tuple[Origin, ...] = ()
    """Web origins whose pages may call the API. Empty: none but the server's own."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain of this process. With it, it is https. Relative to the config file."""
    tls_key: Path | None = None
    """PEM file with the private key of that certificate, without a password."""
    processes: Annotated[int, Meta(ge=1, le=256)] = 1
    """API processes that share the port, each with a core of its own. More than one only where [api] is alone."""


class Controller(_Table, frozen=True, kw_only=True):
    """``[controller]``: knows which workers live, and how to choose among them."""

    policy: Name = "shortest_queue"
    """How a worker is picked: shortest_queue, least_work, power_of_two, round_robin, lottery, prefix, session, or a
    plugin's."""
    policies: Mapping[Name, Name] = {}
    """The same for single models, by the name that clients call the model: others than `policy`."""


class Api(_Table, frozen=True, kw_only=True):
    """``[api]``: the OpenAI API."""

    keys: tuple[Secret, ...] = ()
    """Keys that clients may present, in plain or as "sha256:" and 64 hexadecimal digits. Empty: none needed."""
    keys_file: Path | None = None
    """A file with more keys, one a line; " #" begins a comment. Relative to the config file."""
    controllers: tuple[Url, ...] = ()
    """Where the controllers are. Needed when no [controller] is here."""
    advertise: Url | None = None
    """The address at which workers that dial out reach this process. Default: what its controller sees, and `port`."""
    policy_header: bool = False
    """Let requests name a dispatch policy in the header `x-dispatch-policy`: for operators who compare them."""


class Cluster(_Table, frozen=True, kw_only=True):
    """``[cluster]``: what all roles of one cluster share."""

    token: Secret | None = None
    """Proves that a peer belongs to this cluster. Needed once roles run in several processes."""
    tls_ca: Path | None = None
    """PEM file with the authorities that peers' certificates are checked by. With it, and `server.tls_certificate`,
    peers have to show a certificate as well when they dial (mutual TLS). Default: the system's, and none is asked."""


class Limits(_Table, frozen=True, kw_only=True):
    """``[limits]``: what one request may ask for. More is answered 400 before any work is done."""

    max_n: Count = 128
    """Answers per prompt (`n`)."""
    max_prompts: Count = 2048
    """Prompts of one completion, inputs of one embedding request."""
    max_answers: Count = 2048
    """Answers of one request: prompts times `n`."""
    max_messages: Count = 4096
    """Messages of one conversation."""
    max_tools: Count = 128
    """Tools offered to the model."""
    max_stop: Count = 16
    """Stop strings, and likewise stop token ids."""
    max_stop_chars: Count = 1024
    """Characters of one stop string."""
    max_logprobs: Annotated[int, Meta(ge=0)] = 20
    """Alternatives per token (`top_logprobs`)."""
    max_logit_bias: Annotated[int, Meta(ge=0)] = 1024
    """Tokens with a `logit_bias`."""


class Timeouts(_Table, frozen=True, kw_only=True):
    """``[worker.timeouts]``: seconds that one request may take. ``inf`` in TOML, None here: no limit."""

    total_s: LimitSeconds | None = None
    """From acceptance to the last token."""
    queue_s: LimitSeconds | None = 60.0
    """Waiting for a slot."""
    first_token_s: LimitSeconds | None = 120.0
    """From the slot to the first token."""
    between_tokens_s: LimitSeconds | None = 30.0
    """From one token to the next."""
    embed_s: LimitSeconds | None = 120.0
    """From the slot to the vectors of an embedding request."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) == math.inf:
                force_setattr(self, name, None)


class Worker(_Table, frozen=True, kw_only=True):
    """One ``[[worker]]``: an engine with slots and a queue."""

    backend: Name
    """Which backend plugin brings the engine: "hf", "echo", …"""
    model: str = ""
    """A name that a plugin registered, a folder (relative to the config file), or a hub id."""
    names: tuple[Name, ...] = ()
    """What clients call the model. Default: the last part of `model`, or of `backend` if there is none."""
    concurrency: Annotated[int, Meta(ge=1, le=65536)] = 16
    """Slots: requests that generate at the same time."""
    queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    """Requests that wait for a slot at most; beyond: 429."""
    speed: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """How fast this worker is, relative to others of the same name: a weight for dispatch."""
    controllers: tuple[Url, ...] = ()
    """Where to register. Needed when no [controller] is here."""
    advertise: Url | None = None
    """The address at which peers reach this worker. Default: derived from the bound socket. Proved by a call back."""
    reach: Literal["in", "out"] = "in"
    """Who opens links: "in", others dial this process; "out", it dials them, and nothing has to be open here: for
    workers behind NAT or a firewall. The workers of one process agree on this, on `controllers` and `advertise`."""
    placement: Literal["loop", "process"] = "loop"
    """Where the engine runs: in this process's event loop, or in a process of its own, which may crash or keep the
    interpreter busy without hurting anybody else, and is started anew."""
    load: Literal["start", "first_request"] = "start"
    """When the engine is loaded: before anything is served, or once the first request wants it."""
    idle_unload_s: LimitSeconds | None = None
    """Unload an engine that had nothing to do for so many seconds; the next request loads it again. ``inf`` in TOML,
    None here: never."""
    tool_parser: Name | None = None
    """How tool calls are read out of the answer. Default: what the chat template suggests."""
    timeouts: Timeouts = Timeouts()
    """Time limits of one request."""
    options: Mapping[str, Any] = {}
    """What only this backend has to set; its own documentation lists the keys."""

    def __post_init__(self) -> None:
        if not self.names:
            last = (self.model or self.backend).replace("\\", "/").rstrip("/").rpartition("/")[2]
            force_setattr(self, "names", (last or self.backend,))
        if self.idle_unload_s == math.inf:
            force_setattr(self, "idle_unload_s", None)

    @property
    def on_demand(self) -> bool:
        """Whether its engine is there only while somebody wants it."""
        return self.load == "first_request" or self.idle_unload_s is not None


class FastChat(_Table, frozen=True, kw_only=True):
    """``[fastchat]``: processes of FastChat's as peers of this one."""

    enabled: bool = False
    """Serve FastChat's controller and worker routes and ``/api/v1/…``, and take its workers in."""
    networks: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    """Where its processes are. They have no keys: their addresses are all that they are known by."""
    upstreams: tuple[Url, ...] = ()
    """Controllers and workers whose models are served here, too, although they do not register."""
    controllers: tuple[Url, ...] = ()
    """FastChat's controllers at which to register the models that are served here."""
    advertise: Url | None = None
    """The address to register there. Default: derived from the connection to the controller."""
    beat_s: LimitSeconds = 45.0
    """How often those controllers hear from us."""
    lease_s: LimitSeconds = 90.0
    """How long a registered worker counts as alive without news."""
    concurrency: Annotated[int, Meta(ge=1, le=65536)] = 16
    """Requests at the same time for each model of each of its workers."""
    queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    """Requests that wait for each of them at most."""
    timeouts: Timeouts = Timeouts()
    """Time limits of one request to them."""


class Tables(_Table, frozen=True, kw_only=True):
    """What a config file may hold."""

    server: Server = Server()
    """The socket, and what holds for every request on it."""
    controller: Controller | None = None
    """Present: this process is a controller."""
    api: Api | None = None
    """Present: this process serves the OpenAI API."""
    cluster: Cluster = Cluster()
    """What all roles of one cluster share."""
    worker: tuple[Worker, ...] = ()
    """The engines of this process."""
    plugins: tuple[Name, ...] = ()
    """Plugins to load besides those that `backend`, `model` and `policy` name."""
    limits: Limits = Limits()
    """What one request may ask for."""
    fastchat: FastChat = FastChat()
    """FastChat's processes as peers."""


class Config(Tables, frozen=True, kw_only=True):
    """A config that was read and holds together, and where each of its values was written."""

    places: Places = Places()

    def error(self, path: KeyPath, problem: str) -> ConfigError:
        """An error that points at a key: ``raise config.error(("worker", 0, "backend"), "…")``."""
        return self.places.error(path, problem)
