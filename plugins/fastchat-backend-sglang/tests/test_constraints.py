"""Constraints as SGLang is told them, and what it is spared."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from fastchat_backend_sglang.constraints import as_params, check
from fastchat_serve import Choice, Constraint, Grammar, InvalidRequest, JsonSchema, Regex

OPTIONS = (
    "yes",
    "a.b",
    "c|d",
    "(x)",
    "[y]",
    "{z}",
    "a\\b",
    'q"uote',
    "new\nline",
    "tab\t",
    "sl/ash",
    "日本 🎉",
    "$5^",
    "-",
)


def test_a_choice_is_a_pattern_of_its_options_and_nothing_else() -> None:
    pattern = as_params(Choice(OPTIONS))["regex"]
    assert all(re.fullmatch(pattern, option) for option in OPTIONS)
    assert not any(re.fullmatch(pattern, other) for other in ("", "axb", "c", "d", "x", "yes.", "new line"))


@pytest.mark.parametrize(
    ("pattern", "told"), [("^[0-9]+$", "[0-9]+"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("^$", ""), ("a|b", "a|b")]
)
def test_anchors_are_taken_for_granted(pattern: str, told: str) -> None:
    assert as_params(Regex(pattern)) == {"regex": told}


@pytest.mark.parametrize(
    ("constraint", "param"),
    [
        (Choice(()), "structured_outputs.choice"),
        (Regex(""), "structured_outputs.regex"),
        (Regex("a" * 100_001), "structured_outputs.regex"),
        (JsonSchema({"enum": ["a" * 100_001]}), "response_format"),
        (Grammar(""), "structured_outputs.grammar"),
    ],
)
def test_what_is_empty_or_too_long_is_refused(constraint: Constraint, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check(constraint)
    assert refusal.value.param == param


@pytest.mark.skipif(find_spec("xgrammar") is None, reason="needs XGrammar, which comes with SGLang")
@pytest.mark.parametrize("ebnf", ['root ::= "a" | ', "root ::= nowhere", 'other ::= "a"', "%"])
def test_half_a_grammar_is_refused_without_naming_a_file(ebnf: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid EBNF") as refusal:
        check(Grammar(ebnf))
    assert ".cc" not in str(refusal.value)
