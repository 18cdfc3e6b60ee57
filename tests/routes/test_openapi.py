"""``/schema``: a valid OpenAPI 3.1 document of every route, and OpenAI's client agrees with it."""

from __future__ import annotations

import json

import httpx
import pytest
from jsonschema import Draft202012Validator
from litestar.routes import HTTPRoute
from openai import AsyncOpenAI
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.end_to_end.raw import connected, events, get

pytestmark = pytest.mark.anyio


@pytest.fixture
async def document(server):
    async with connected(server) as connection:
        reply = await connection.request(get("/schema"))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json()


async def test_the_document_is_valid(document):
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"


async def test_every_route_is_in_it(server, document):
    """S17's sister: what is not documented is not there."""
    served = set()
    for route in server.application.asgi.routes:
        methods = route.methods - {"OPTIONS"} if isinstance(route, HTTPRoute) else {"POST"}
        served |= {(route.path_format, method.lower()) for method in methods}
    documented = {(path, method) for path, operations in document["paths"].items() for method in operations}

    assert documented == served


async def test_it_says_which_routes_need_no_key(document):
    open_routes = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if operation.get("security", document["security"]) == []
    }

    assert open_routes == {"/health", "/ready"}


async def test_what_the_routes_answer_is_what_it_says(server, document):
    async with connected(server) as connection, AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        asked = {"x-request-id": "asked-before"}
        await client.completions.create(model="echo", prompt="to be", extra_headers=asked)
        for path, operations in document["paths"].items():
            if "get" not in operations:
                continue
            reply = await connection.request(get(path.format(model="echo", request_id=asked["x-request-id"])))
            content = operations["get"]["responses"][str(reply.status)]["content"]
            media_type = reply.headers["content-type"].partition(";")[0]
            assert media_type in content, path
            if media_type == "application/json":
                validator(document, content[media_type]["schema"]).validate(reply.json())


def validator(document: dict, schema: dict) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


async def test_requests_and_replies_of_openais_client_are_valid_under_it(server, document):
    """What the client sends and gets, recorded on the way, against the schemas."""
    seen: list[tuple[httpx.Request, httpx.Response]] = []

    async def record(response: httpx.Response) -> None:
        await response.aread()
        seen.append((response.request, response))

    said = [{"role": "system", "content": "brief"}, {"role": "user", "content": [{"type": "text", "text": "to be"}]}]
    async with (
        httpx.AsyncClient(event_hooks={"response": [record]}) as http,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http, max_retries=0) as client,
    ):
        chat = client.chat.completions.create
        await chat(model="echo", messages=said, n=2, logprobs=True, top_logprobs=1, stop=["x"], seed=1)
        async for _ in await chat(
            model="echo", messages=said, stream=True, logprobs=True, stream_options={"include_usage": True}
        ):
            pass
        await client.completions.create(model="echo", prompt=["a", "b"], echo=True, logprobs=1)
        await client.completions.create(model="echo", prompt=[[97], [98]], max_tokens=3)
        async for _ in await client.completions.create(model="echo", prompt="a", stream=True):
            pass
        await client.embeddings.create(model="echo", input=["a", "b"])
        await client.embeddings.create(model="echo", input="a", encoding_format="float")
        await client.models.list()
        await client.models.retrieve("echo")

    assert len(seen) == 9
    for request, response in seen:
        path = "/v1/models/{model}" if request.url.path.startswith("/v1/models/") else request.url.path
        operation = document["paths"][path][request.method.lower()]
        if request.content:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            validator(document, schema).validate(json.loads(request.content))
        media_type = response.headers["content-type"].partition(";")[0]
        of_reply = validator(document, operation["responses"]["200"]["content"][media_type]["schema"])
        if media_type == "text/event-stream":
            for event in events(response.content)[:-1]:
                of_reply.validate(event)
        else:
            of_reply.validate(response.json())


async def test_errors_are_what_it_says(server, document):
    async with connected(server) as connection:
        reply = await connection.request(get("/v1/models/none"))

    content = document["paths"]["/v1/models/{model}"]["get"]["responses"]["default"]["content"]
    validator(document, content["application/json"]["schema"]).validate(reply.json())
