"""The list of faults: broken engines by name, each with the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from tests.testing.toy import ToyEngine

__all__ = ["FAULTS", "Fault", "caught_by"]


class Fault(Struct, frozen=True):
    """An engine that is broken in one way."""

    engine: type[ToyEngine]
    caught_by: str
    """The name of the check."""

    @property
    def topic(self) -> str:
        return self.caught_by.partition(".")[0]


FAULTS: dict[str, Fault] = {}


def caught_by(check: str) -> Callable[[type], type]:
    """Enter an engine, or a stream of an engine that is well, as a fault of its name."""

    def enter(kind: type) -> type:
        engine = kind if issubclass(kind, ToyEngine) else type(kind.__name__, (ToyEngine,), {"Stream": kind})
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)
        FAULTS[name.lstrip("_")] = Fault(engine, check)
        return kind

    return enter
