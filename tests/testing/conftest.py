"""The checks are imported here to be looked at, so their mark has to be known although the kit does not run."""

from __future__ import annotations

import pytest

from fastchat_serve.testing.marks import NEEDS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS}: see fastchat_serve.testing.marks")
