"""What is simulated: the file of ``fastchat-serve simulate --config``, read as strictly as a server's config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict, force_setattr

from fastchat_serve.configfile.decode import Decoder
from fastchat_serve.configfile.places import KeyPath, Places
from fastchat_serve.configfile.sources import apply_override, read_toml
from fastchat_serve.errors import ConfigError

__all__ = ["Fleet", "Goal", "Plan", "Synthetic", "Tables", "load_plan"]

Name = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Number = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """Immutable, and no key is ignored."""


class Fleet(_Table, frozen=True, kw_only=True):
    """One ``[[fleet]]``: workers that are all alike."""

    names: Annotated[tuple[Name, ...], Meta(min_length=1)]
    """What clients call the model."""
    count: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Workers."""
    speed: Positive = 1.0
    """As in a server's `[[worker]]`: what policies are told. It changes nothing in how fast the workers are."""
    concurrency: Count = 16
    """Slots of each."""
    queue: Number = 64
    """Requests that wait at each, at most."""
    queue_s: Positive = 60.0
    """How long they wait at most."""
    prefill_tokens_per_s: Positive = 10_000.0
    """How fast a worker reads prompts, one after the other."""
    decode_tokens_per_s: Positive = 60.0
    """How fast it writes one answer alone."""
    batch_tokens_per_s: Positive = 1_000.0
    """How fast it writes all its answers together, at most."""
    cache_tokens: Number = 100_000
    """Of prompts that it has read and need not read again."""
    mtbf_s: Positive | None = None
    """Mean time between failures of one worker; they come by chance. Not set: never."""
    kill_at_s: tuple[Seconds, ...] = ()
    """At each of these times one worker is lost: the first, then the second, and so on."""
    repair_s: Seconds = 60.0
    """Until a lost worker is back, with an empty cache."""


class Synthetic(_Table, frozen=True, kw_only=True):
    """``[synthetic]``: requests that are made up, where there is no trace."""

    requests: Count = 10_000
    """How many."""
    rate: Positive = 10.0
    """How many a second, in the mean."""
    arrivals: Literal["poisson", "bursty"] = "poisson"
    """One by one, or in bursts."""
    burst: Positive = 10.0
    """Requests of a burst, in the mean."""
    prompt_tokens: Count = 800
    """In the mean, without what is shared with earlier requests."""
    output_tokens: Count = 200
    """In the mean."""
    spread: Annotated[float, Meta(ge=0, le=3)] = 0.8
    """Of both lengths (the sigma of a log-normal distribution); 0: all are alike."""
    prefixes: Number = 0
    """Beginnings that requests share, such as system prompts; some are asked for more often than others."""
    prefix_tokens: Number = 512
    """Of each of them."""
    sessions: Number = 0
    """Conversations that go on at any time: each request belongs to one, and its prompt holds all of it so far."""
    turns: Count = 6
    """Of a conversation, in the mean."""
    models: tuple[Name, ...] = ()
    """That are asked for, all as often. Not set: those of the fleet."""


class Goal(_Table, frozen=True, kw_only=True):
    """``[goal]``: what an answer must be to count as good."""

    first_token_s: Positive | None = None
    """Its first token comes within so many seconds."""
    tokens_per_s: Positive | None = None
    """It is written so fast from then on, in the mean."""


class Tables(_Table, frozen=True, kw_only=True):
    """What the file may hold."""

    fleet: Annotated[tuple[Fleet, ...], Meta(min_length=1)]
    """The workers."""
    seed: int = 0
    """Of all chance. One seed is one run."""
    policies: tuple[Name, ...] = ()
    """That are compared: ours, or a plugin's. Not set: all of ours."""
    speedup: Positive = 1.0
    """How many times as fast requests come as the trace has it."""
    plugins: tuple[Name, ...] = ()
    """Plugins to load."""
    goal: Goal = Goal()
    """What an answer must be to count as good."""
    synthetic: Synthetic = Synthetic()
    """Requests that are made up, where there is no trace."""

    def __post_init__(self) -> None:
        if not self.synthetic.models:
            models = tuple(dict.fromkeys(fleet.names[0] for fleet in self.fleet))
            made = Synthetic(**{**asdict(self.synthetic), "models": models})
            force_setattr(self, "synthetic", made)


class Plan(Tables, frozen=True, kw_only=True):
    """A plan that was read, and where each of its values was written."""

    places: Places = Places()

    @property
    def models(self) -> tuple[str, ...]:
        """All that the fleet serves."""
        return tuple(dict.fromkeys(name for fleet in self.fleet for name in fleet.names))

    def error(self, path: KeyPath, problem: str) -> ConfigError:
        """An error that points at a key."""
        return self.places.error(path, problem)


def load_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read the file `path`, with ``--set`` arguments laid over it. Raises `ConfigError`."""
    document = read_toml(path)
    for override in overrides:
        apply_override(document, override)
    places = document.places
    decoder = Decoder(places)
    tables = decoder.decode(document.tables, Tables, ())
    if decoder.problems:
        first, *others = sorted(decoder.problems, key=lambda problem: (problem.line or 0, problem.column or 0))
        for other in others:
            first.add_note(str(other))
        raise first
    plan = Plan(**asdict(tables), places=places)
    for index, model in enumerate(plan.synthetic.models):
        if model not in plan.models:
            raise plan.error(("synthetic", "models", index), f"no worker of the fleet serves {model!r}")
    for number, fleet in enumerate(plan.fleet):
        if any(not math.isfinite(at_s) for at_s in fleet.kill_at_s):
            raise plan.error(("fleet", number, "kill_at_s"), "these are times in seconds")
    return plan
