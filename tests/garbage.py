"""What is left for the collector of cyclic garbage, where nothing should be."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["cyclic_garbage"]


@contextmanager
def cyclic_garbage() -> Iterator[Counter[str]]:
    """Counts by type, once it is left, the objects of ours that were held in circles meanwhile."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = [type(item) for item in gc.garbage]
        found.update(kind.__qualname__ for kind in kinds if kind.__module__.startswith("fastchat_serve."))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
