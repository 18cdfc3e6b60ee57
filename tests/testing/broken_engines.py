"""Engines that each break the contract in one way, and the check of the kit that must notice.

All are the toy engine with something planted (`planted/`). As a plugin this module offers them as
``backend = "broken"``, with the option ``fault``; without it the engine is well.
"""

from __future__ import annotations

from msgspec import Struct

from fastchat_serve import CONTRACT, Engine, EngineSetup, RegisterEngine, hookimpl
from tests.testing.planted import ends, life, prompts, requests, sampling, streams
from tests.testing.planted.faults import FAULTS
from tests.testing.toy import ToyEngine

__all__ = ["FAULTS", "MODULES"]

MODULES = (streams, ends, prompts, sampling, requests, life)
"""Each enters its engines into `FAULTS`."""


class BrokenOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    fault: str = ""
    """A name of `FAULTS`; empty: none."""


def _open(setup: EngineSetup) -> Engine:
    assert isinstance(setup.options, BrokenOptions)
    return FAULTS[setup.options.fault].engine() if setup.options.fault else ToyEngine()


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("broken", _open, contract=CONTRACT, options=BrokenOptions)
