"""What becomes of a request's parameters and constraint. Needs no vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vllm_answers import asking

from fastchat_backend_vllm.constraints import structured_outputs
from fastchat_backend_vllm.sampling import cache_salt, is_replayed, sampling_arguments
from fastchat_serve import (
    Choice,
    Constraint,
    Grammar,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Regex,
    constraint_param,
)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, -(2**63)])
def test_a_seed_of_64_bits_becomes_one_that_vllm_takes(seed: int) -> None:
    assert 0 <= sampling_arguments(asking(seed=seed), limit=8)["seed"] < 2**63


def test_what_was_delivered_counts_towards_both_limits() -> None:
    request = asking(resume_token_ids=(1, 2, 3), min_tokens=5, max_tokens=8)

    assert sampling_arguments(request, limit=8).items() >= {("max_tokens", 5), ("min_tokens", 2)}


@pytest.mark.parametrize(
    "fields", [{"presence_penalty": 0.5}, {"frequency_penalty": -0.5}, {"constraint": JsonObject()}]
)
def test_where_it_matters_what_was_drawn_an_answer_is_resumed_from_its_beginning(fields: dict[str, Any]) -> None:
    request = asking(resume_token_ids=(1, 2), max_tokens=8, **fields)

    assert is_replayed(request)
    assert sampling_arguments(request, limit=8)["max_tokens"] == 8
    assert not is_replayed(asking(**fields))


@pytest.mark.parametrize("field", [{"ignore_eos": True}, {"min_tokens": 3}])
def test_what_keeps_a_constraint_from_ending_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        sampling_arguments(asking(constraint=JsonObject(), **field), limit=8)


def test_tenants_and_adapters_have_caches_of_their_own() -> None:
    assert len({cache_salt("a"), cache_salt("b"), cache_salt("a", "x"), cache_salt("", "a")}) == 4


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (JsonObject(), {"json_object": True}),
        (JsonSchema({}), {"json": "{}"}),
        (Regex("a+"), {"regex": "a+"}),
        (Grammar('root ::= "a"'), {"grammar": 'root ::= "a"'}),
        (Choice(("yes", "no")), {"choice": ["yes", "no"]}),
    ],
)
def test_every_kind_of_constraint_has_vllms_form(constraint: Constraint, expected: dict[str, Any]) -> None:
    assert structured_outputs(constraint) == expected


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("a" * 9000),
        Regex("(" * 65 + ")" * 65),
        Regex("(a|b)*" * 100),
        Regex("(a{1,1000}){1,1000}"),
        Regex("a{1000000000}"),
        Grammar("root ::= " + '"a"* ' * 300),
        Grammar("x" * 70_000),
        Choice(()),
        Choice(("",)),
        Choice(("a" * 70_000,)),
        JsonSchema({"maxLength": 10**9}),
        JsonSchema({"properties": {"a": {"items": [{"minItems": 1e9}]}}}),
        JsonSchema({"pattern": "(a|b)*" * 100}),
        JsonSchema({"$ref": "http://example.org/schema.json"}),
        JsonSchema({"description": "x" * 70_000}),
        JsonSchema(nested(100_000)),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_what_could_hold_up_the_engine_is_refused(constraint: Constraint) -> None:
    with pytest.raises(InvalidRequest) as caught:
        structured_outputs(constraint)
    assert caught.value.param == constraint_param(type(constraint))


def test_an_ordinary_schema_is_passed_on_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Z][a-z]+$"},
            "tags": {"type": "array", "maxItems": 9},
        },
        "required": ["name"],
        "$defs": {"self": {"$ref": "#"}},
    }
    assert json.loads(structured_outputs(JsonSchema(schema))["json"]) == schema
