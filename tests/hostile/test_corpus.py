"""Every hostile request, to a server with keys and one without: refused in good form, and forgotten (G14).

What each reply has to keep is in `judge.py`; that the server goes on as before, in `attack.py`.
"""

from __future__ import annotations

import pytest

from tests.hostile.attack import attack, attack_without_key
from tests.hostile.corpus import CORPUS, WRITTEN

pytestmark = pytest.mark.anyio

OPEN = {name: case for name, case in WRITTEN.items() if 401 not in case.statuses}
"""Without those that are about keys."""


@pytest.mark.parametrize("case", CORPUS.values(), ids=CORPUS.keys())
async def test_with_a_key(guarded, case):
    await attack(guarded, case)


@pytest.mark.parametrize("case", WRITTEN.values(), ids=WRITTEN.keys())
async def test_without_a_key(guarded, case):
    await attack_without_key(guarded, case)


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN.keys())
async def test_where_no_key_is_needed(open_, case):
    await attack(open_, case)
