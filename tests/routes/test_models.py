"""``/v1/models`` as OpenAI's own client uses it."""

from __future__ import annotations

import pytest
from openai import NotFoundError

from tests.end_to_end.raw import connected, get

pytestmark = pytest.mark.anyio


async def test_all_names_are_listed(client):
    models = await client.models.list()

    assert [(model.id, model.object, model.max_model_len) for model in models.data] == [
        ("echo", "model", 131_072),
        ("org/echo", "model", 131_072),
    ]
    assert all(model.created > 1_600_000_000 for model in models.data)


@pytest.mark.parametrize("name", ["echo", "org/echo"])
async def test_a_model_is_found_by_its_name_slashes_included(client, name):
    assert (await client.models.retrieve(name)).id == name


async def test_an_unescaped_slash_will_do_too(server):
    async with connected(server) as connection:
        assert (await connection.request(get("/v1/models/org/echo"))).json()["id"] == "org/echo"


@pytest.mark.parametrize("name", ["other", "org", "org/", "echo/x", "../models", "ECHO", "a\0b", "é"])
async def test_an_unknown_name_is_a_typed_404(client, name):
    """S4: names are looked up exactly, never as paths."""
    with pytest.raises(NotFoundError) as missing:
        await client.models.retrieve(name)

    assert missing.value.code in ("model_not_found", "not_found")
