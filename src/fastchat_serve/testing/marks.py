"""How a check says what it needs."""

from __future__ import annotations

import pytest

from fastchat_serve.engine import Capability

__all__ = ["FORMS", "NEEDS", "in_both_forms", "needs", "needs_of"]

NEEDS = "fastchat_needs"

FORMS = ("generator", "push")
"""Of a stream: `Engine.generate_stream`, and what a worker drives, which is `PushEngine.start` where there is one."""

in_both_forms = pytest.mark.parametrize("form", FORMS)


def needs(*capabilities: Capability) -> pytest.MarkDecorator:
    """The check runs if the engine declares all of these."""
    return pytest.mark.fastchat_needs(*capabilities)


def needs_of(item: pytest.Item) -> tuple[Capability, ...]:
    """What all marks of `item` name, each once."""
    named = (capability for mark in item.iter_markers(NEEDS) for capability in mark.args)
    return tuple(dict.fromkeys(named))
