"""``/v1/embeddings`` as OpenAI's own client uses it."""

from __future__ import annotations

import math

import pytest
from openai import BadRequestError, NotFoundError

from tests.end_to_end.raw import connected, post

pytestmark = pytest.mark.anyio


async def test_the_clients_default_encoding_and_plain_numbers_say_the_same(client):
    """The client asks for base64 unless told otherwise, and decodes it by itself."""
    by_default = await client.embeddings.create(model="echo", input="to be")
    as_floats = await client.embeddings.create(model="echo", input="to be", encoding_format="float")

    vector = as_floats.data[0].embedding
    assert by_default.data[0].embedding == pytest.approx(vector)
    assert len(vector) == 64
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    assert (as_floats.usage.prompt_tokens, as_floats.usage.total_tokens) == (2, 2)
    assert (as_floats.object, as_floats.data[0].object, as_floats.model) == ("list", "embedding", "echo")


async def test_base64_is_a_string_on_the_wire(server):
    async with connected(server) as connection:
        reply = await connection.request(
            post("/v1/embeddings", {"model": "echo", "input": "x", "encoding_format": "base64"})
        )

    assert isinstance(reply.json()["data"][0]["embedding"], str)


async def test_a_batch_keeps_its_order(client):
    batch = await client.embeddings.create(model="echo", input=["one", "two", "one"])
    tokens = await client.embeddings.create(model="echo", input=[list(b"one"), list(b"two")])

    assert [item.index for item in batch.data] == [0, 1, 2]
    assert batch.data[0].embedding == batch.data[2].embedding != batch.data[1].embedding
    assert tokens.data[0].embedding == batch.data[0].embedding


async def test_dimensions_must_be_those_of_the_model(client):
    same = await client.embeddings.create(model="echo", input="x", dimensions=64)
    assert len(same.data[0].embedding) == 64

    with pytest.raises(BadRequestError) as refused:
        await client.embeddings.create(model="echo", input="x", dimensions=32)
    assert (refused.value.param, refused.value.code) == ("dimensions", "unsupported")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": None}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"input": "x " * 131_073}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_embedded_is_refused_by_name(server, asked, param):
    """F33."""
    async with connected(server) as connection:
        reply = await connection.request(post("/v1/embeddings", {"model": "echo", "input": "x"} | asked))

    assert (reply.status, reply.json()["error"]["param"]) == (400, param)


async def test_an_input_that_is_too_long_can_be_cut_instead(client):
    answer = await client.embeddings.create(model="echo", input="x " * 131_073, extra_body={"truncate": True})

    assert answer.usage.prompt_tokens == 131_072


async def test_an_unknown_model_is_a_typed_404(client):
    with pytest.raises(NotFoundError):
        await client.embeddings.create(model="other", input="x")
