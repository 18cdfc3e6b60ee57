"""Every Struct of the wire: what is encoded decodes again, and what is damaged is refused in one way only."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct, inspect

from fastchat_serve.config import Limits
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.protocol import cluster, fastchat, openai
from fastchat_serve.routes.exchange import decode
from tests.hostile.corpus.fields import REQUESTS, slots
from tests.protocol.values import ANY_JSON, damaged, json_of, structs_of

STRUCTS = structs_of(openai) | structs_of(cluster) | structs_of(fastchat)
every_struct = pytest.mark.parametrize("kind", STRUCTS.values(), ids=STRUCTS.keys())
thoroughly = settings(max_examples=20)


@every_struct
@thoroughly
@given(data=st.data())
def test_what_is_encoded_decodes_to_the_same(kind, data):
    good = data.draw(json_of(inspect.type_info(kind)))
    value = decode(msgspec.json.Decoder(kind), json.dumps(good).encode())

    encoded = msgspec.json.encode(value)

    assert decode(msgspec.json.Decoder(kind), encoded) == value
    assert msgspec.json.encode(decode(msgspec.json.Decoder(kind), encoded)) == encoded


@every_struct
@thoroughly
@given(data=st.data())
def test_f33_what_is_damaged_is_decoded_or_refused(kind, data):
    """Trap 1, 2: no other exception, whatever a client sends; and the message is fit to be seen."""
    body = data.draw(damaged(json_of(inspect.type_info(kind))) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
    result: object
    try:
        result = decode(msgspec.json.Decoder(kind), body)
    except InvalidRequest as error:
        result = error

    assert isinstance(result, kind | InvalidRequest)
    assert isinstance(result, kind) or len(str(result)) < 500


# ------------------------------------------------------------------------------------------- bounds


def parts(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=lambda kind: kind.__name__)
def test_s8_every_number_of_a_request_has_a_range(request_: type[Struct]):
    """Trap 5. The keys of dictionaries are numbers, too."""
    numbers = 0
    for slot in slots(request_):
        for kind in parts(slot.type):
            if isinstance(kind, inspect.DictType):
                kind = kind.key_type
            if isinstance(kind, inspect.IntType | inspect.FloatType):
                numbers += 1
                assert kind.ge is not None or kind.gt is not None, slot.path
                assert kind.le is not None or kind.lt is not None, slot.path
    assert numbers >= 3


BOUND_OF = {
    "choice": None,
    "content": None,
    "input": "max_prompts",
    "input[0]": None,
    "logit_bias": "max_logit_bias",
    "messages": "max_messages",
    "modalities": None,
    "prompt": "max_prompts",
    "prompt[0]": None,
    "stop": "max_stop",
    "stop_token_ids": "max_stop",
    "tool_calls": None,
    "tools": "max_tools",
}
"""For each list of a request: the limit on its length. None: its body's, for it costs no more than to be read."""


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=lambda kind: kind.__name__)
def test_s8_every_list_of_a_request_has_a_limit(request_: type[Struct]):
    for slot in slots(request_):
        name = slot.path.rpartition(".")[2]
        for kind in parts(slot.type):
            if isinstance(kind, inspect.VarTupleType | inspect.ListType) or (
                isinstance(kind, inspect.DictType) and not isinstance(kind.value_type, inspect.AnyType)
            ):
                assert name in BOUND_OF, f"{slot.path}: give it a limit, or say here that it needs none"
                limit = BOUND_OF[name]
                assert limit is None or limit in Limits.__struct_fields__


def test_the_limits_listed_are_those_of_fields_that_exist():
    names = {slot.path.rpartition(".")[2] for request in REQUESTS.values() for slot in slots(request)}

    assert BOUND_OF.keys() <= names
