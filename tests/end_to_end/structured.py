"""Answers under a JSON Schema, asked for as clients do: for the tests of every engine that can give them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
from openai import AsyncOpenAI

__all__ = ["ORDER", "structured_answers"]

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 24},
                "kind": {"enum": ["person", "company"]},
                "email": {"anyOf": [{"type": "string", "maxLength": 32}, {"type": "null"}]},
            },
            "required": ["name", "kind"],
            "additionalProperties": False,
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                    "count": {"type": "integer", "minimum": 1, "maximum": 20},
                    "gift": {"type": "boolean"},
                },
                "required": ["sku", "count"],
                "additionalProperties": False,
            },
            "minItems": 1,
            "maxItems": 3,
        },
        "delivery": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"day": {"type": "string", "format": "date"}, "way": {"const": "post"}},
                    "required": ["day", "way"],
                    "additionalProperties": False,
                },
                {"enum": ["pickup", None]},
            ]
        },
        "note": {"type": "string", "maxLength": 40},
    },
    "required": ["customer", "items", "delivery"],
    "additionalProperties": False,
}
"""Nested, with required and optional properties, and bounded: whatever a model writes, it comes to an end."""

_PROMPT = [{"role": "user", "content": "Make up an order as JSON."}]


async def structured_answers(
    base_url: str, model: str, *, runs: int = 100, streamed: bool = False, at_once: int = 16, **asked: Any
) -> list[Any]:
    """`runs` answers under `ORDER` at temperature 1, each with a seed of its own, parsed and found valid."""
    turns = asyncio.Semaphore(at_once)
    async with AsyncOpenAI(base_url=base_url, api_key="not needed", max_retries=0, timeout=300) as client:

        async def run(seed: int) -> Any:
            async with turns:
                text = await _answer(client, streamed, model=model, seed=seed, **asked)
            value = json.loads(text)
            jsonschema.validate(value, ORDER, format_checker=jsonschema.FormatChecker())
            return value

        return await asyncio.gather(*map(run, range(runs)))


async def _answer(client: AsyncOpenAI, streamed: bool, **asked: Any) -> str:
    request: dict[str, Any] = {
        "messages": _PROMPT,
        "temperature": 1.0,
        "max_tokens": 800,
        "response_format": {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER, "strict": True}},
        **asked,
    }
    if streamed:
        chunks = [chunk async for chunk in await client.chat.completions.create(**request, stream=True)]
        assert chunks[-1].choices[0].finish_reason == "stop"
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    choice = (await client.chat.completions.create(**request)).choices[0]
    assert choice.finish_reason == "stop"
    return choice.message.content or ""
