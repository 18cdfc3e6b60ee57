"""What pytest loads in every environment that has fastchat-serve: it brings in the kit when the kit is asked for.

The kit's options have plain names such as ``--backend``, which another suite may use for its own. So nothing is
registered, nor imported, unless the command line names the kit.
"""

from __future__ import annotations

import pytest

__all__ = ["pytest_load_initial_conftests"]

_KIT = "fastchat_serve.testing"


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Called when plugins are loaded and options can still be added."""
    if any(argument == _KIT or argument.startswith((f"{_KIT}.", f"{_KIT}::")) for argument in args):
        early_config.pluginmanager.import_plugin(f"{_KIT}.plugin")
