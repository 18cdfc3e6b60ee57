"""What is left of an engine once it is closed."""

from __future__ import annotations

import gc

__all__ = ["collect_garbage"]


def collect_garbage() -> None:
    """Free what only cycles of references hold, such as the weights of an engine that was closed.

    A server freezes what it has loaded, so that the collector need not walk through it again and again; what is frozen
    would never be freed.
    """
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
