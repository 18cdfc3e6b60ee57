"""Constraints: an answer is within what was asked for, also at temperature 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from fastchat_serve.engine import Capability, Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.testing.answers import Answer
from fastchat_serve.testing.marks import in_both_forms, needs
from fastchat_serve.testing.subject import PROMPTS, Subject

__all__ = ["ROOM", "constraints_of"]

pytestmark = needs(Capability.GENERATE)

SEEDS = range(6)
ROOM = 160
"""Tokens in which every constrained answer could end; JSON may be padded with white space until then."""


class Person(Struct, forbid_unknown_fields=True):
    """What `SCHEMA` says, in another language."""

    name: Annotated[str, Meta(max_length=6)]
    age: Annotated[int, Meta(ge=0, le=9)]
    mood: Literal["calm", "cross"]
    awake: bool


SCHEMA = JsonSchema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 9},
            "mood": {"enum": ["calm", "cross"]},
            "awake": {"type": "boolean"},
        },
        "required": ["name", "age", "mood", "awake"],
        "additionalProperties": False,
    }
)
PATTERN = r"(red|green|blue)-[0-9]{2,4}"
LETTERS = r"[あいう]{2,5}!"
OPTIONS = ("yes", "no", "perhaps, but not today", "はい")
EBNF = """
root ::= greeting " " name "!"
greeting ::= "hello" | "good day"
name ::= "Ann" | "Bob" | [a-c] [0-9]
"""
SENTENCES = r"(hello|good day) (Ann|Bob|[a-c][0-9])!"


async def holds(subject: Subject, constraint: Constraint, is_within: Callable[[str], object], form: str) -> None:
    """Every answer that ends by itself is within `constraint`; of several, some end by themselves."""
    ended = 0
    for seed in SEEDS:
        request = subject.request(
            PROMPTS[seed % 3], constraint=constraint, max_tokens=ROOM, temperature=min(seed, 1.0), seed=seed
        )
        answer = await subject.answer(request, form)
        if answer.finish_reason == "stop":
            ended += 1
            assert is_within(answer.text), f"{answer.text!r} is not within {constraint}"
    assert ended, f"no answer ended within {ROOM} tokens"
    if ended < len(SEEDS):
        subject.note(f"{len(SEEDS) - ended} of {len(SEEDS)} were cut off")


def is_object(text: str) -> bool:
    return isinstance(msgspec.json.decode(text), dict)


def is_person(text: str) -> bool:
    return bool(msgspec.json.decode(text, type=Person))


@needs(Capability.JSON_OBJECT)
@in_both_forms
async def test_json_object(subject: Subject, form: str) -> None:
    """With `JsonObject` the answer is a JSON object."""
    await holds(subject, JsonObject(), is_object, form)


@needs(Capability.JSON_SCHEMA)
@in_both_forms
async def test_json_schema(subject: Subject, form: str) -> None:
    """With `JsonSchema` the answer is JSON that the schema allows: types, ranges, lengths, and nothing besides."""
    await holds(subject, SCHEMA, is_person, form)


@needs(Capability.REGEX)
@pytest.mark.parametrize("pattern", [PATTERN, LETTERS], ids=["words", "letters"])
async def test_regex(subject: Subject, pattern: str) -> None:
    """With `Regex` the pattern matches the whole answer."""
    await holds(subject, Regex(pattern), re.compile(pattern).fullmatch, "generator")


@needs(Capability.CHOICE)
@in_both_forms
async def test_choice(subject: Subject, form: str) -> None:
    """With `Choice` the answer is one of the options."""
    await holds(subject, Choice(OPTIONS), OPTIONS.__contains__, form)


@needs(Capability.GRAMMAR)
@in_both_forms
async def test_grammar(subject: Subject, form: str) -> None:
    """With `Grammar` the grammar derives the answer."""
    await holds(subject, Grammar(EBNF), re.compile(SENTENCES).fullmatch, form)


KINDS: Mapping[Capability, tuple[Constraint, Callable[[str], object]]] = MappingProxyType(
    {
        Capability.JSON_SCHEMA: (SCHEMA, is_person),
        Capability.REGEX: (Regex(PATTERN), re.compile(PATTERN).fullmatch),
        Capability.GRAMMAR: (Grammar(EBNF), re.compile(SENTENCES).fullmatch),
        Capability.CHOICE: (Choice(OPTIONS), OPTIONS.__contains__),
    }
)


def constraints_of(subject: Subject) -> list[Constraint]:
    """One of each kind that the engine declares, but for `JsonObject`, which has no end."""
    return [constraint for capability, (constraint, _) in KINDS.items() if subject.can(capability)]


async def test_each_keeps_to_its_own(subject: Subject) -> None:
    """Answers under different constraints, and one under none, run together and each keeps to its own."""
    kinds = [kind for capability, kind in KINDS.items() if subject.can(capability)]
    if not kinds:
        pytest.skip("not declared: any kind of constraint")
    plain = await subject.greedy(0)
    requests = [subject.request(constraint=kind, max_tokens=ROOM, temperature=1.0, seed=3) for kind, _ in kinds]
    answers = await subject.together([*requests, subject.again(plain.request)])
    subject.expect_same(answers.pop().whole(), plain, "the answer under no constraint")
    for answer, (constraint, is_within) in zip(answers, kinds, strict=True):
        if answer.whole().finish_reason == "stop":
            assert is_within(answer.text), f"{answer.text!r} is not within {constraint}"


IMPOSSIBLE: Mapping[Capability, Constraint] = MappingProxyType(
    {
        Capability.JSON_SCHEMA: JsonSchema({"type": "no such type"}),
        Capability.REGEX: Regex("(never closed"),
        Capability.GRAMMAR: Grammar('root ::= "a" nowhere'),
        Capability.CHOICE: Choice(()),
    }
)


@pytest.mark.parametrize("capability", IMPOSSIBLE)
async def test_nonsense_is_refused(subject: Subject, capability: Capability) -> None:
    """A constraint that means nothing is an `InvalidRequest`, and the next one is served."""
    if not subject.can(capability):
        pytest.skip(f"not declared: {capability.value}")
    error = await subject.refusal(subject.request(constraint=IMPOSSIBLE[capability]))
    assert isinstance(error, InvalidRequest), repr(error)
    await subject.idle()
    answer: Answer = await subject.answer(subject.request())
    subject.expect_same(answer, await subject.greedy(0), "the next answer")
