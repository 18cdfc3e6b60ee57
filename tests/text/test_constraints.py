"""What masks allow is what the constraint says, for every way a tokenizer may cut text."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastchat_serve.engine import (
    ChatPrompt,
    Choice,
    Constraint,
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    Regex,
    ToolSpec,
)
from fastchat_serve.errors import EngineError, InvalidRequest, StartupError
from fastchat_serve.text import ConstraintLimits, Constraints, HermesToolParser, TokenizerVocabulary, ToolCallDelta
from tests.text.walking import Walker

pytest.importorskip("llguidance", reason="constraints need it, and come with it")

PADDING = 100
"""Ids that the model has and the tokenizer has not."""

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "dog", None]},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"type": "number"}}}]},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}

ARITHMETIC = r"""
root ::= expression
expression ::= term (("+" | "-") term)*   # left to right
term ::= [0-9]{1,2} | "(" expression ")"
"""


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def ends(tokenizer: Any) -> set[int]:
    return {tokenizer.token_to_id(name) for name in ("<|end|>", "</s>", "<unk>")} - {None}


@pytest.fixture(scope="module")
def constraints(tokenizer: Any, ends: set[int]) -> Constraints:
    return made(tokenizer, ends)


@pytest.fixture(scope="module")
def walker(constraints: Constraints, tokenizer: Any, ends: set[int]) -> Walker:
    return Walker(constraints, tokenizer, ends)


def made(tokenizer: Any, ends: set[int], **limits: Any) -> Constraints:
    vocabulary = TokenizerVocabulary(tokenizer, tokenizer.get_vocab_size() + PADDING)
    return Constraints(vocabulary, end_ids=ends, limits=ConstraintLimits(**limits))


# ------------------------------------------------------------------------------------------- schemas


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def schema(properties: dict[str, Any], required: set[str], more: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": sorted(required & properties.keys()),
            "additionalProperties": more,
        }

    names = st.sampled_from(["a", "b c", "é", 'q"', "n"])
    return st.builds(schema, st.dictionaries(names, values, max_size=4), st.sets(names), st.sampled_from([True, False]))


def ranges(least: str, most: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(values, values).map(lambda pair: {least: min(pair), most: max(pair)})


TENTHS = st.integers(-25, 25).map(lambda value: value / 10)

LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}, {}]),
    ranges("minLength", "maxLength", st.integers(0, 9)).map(lambda bounds: {"type": "string", **bounds}),
    ranges("minimum", "maximum", st.integers(-200, 200)).map(lambda bounds: {"type": "integer", **bounds}),
    st.builds(
        lambda least, most: {"type": "number", **least, **most},
        st.dictionaries(st.sampled_from(["minimum", "exclusiveMinimum"]), TENTHS, max_size=1),
        st.dictionaries(st.sampled_from(["maximum", "exclusiveMaximum"]), TENTHS, max_size=1),
    ),
    ranges("minimum", "maximum", st.floats(-9, 9).map(lambda value: round(value, 2))).map(
        lambda bounds: {"type": "number", **bounds}
    ),
    st.sampled_from([{"type": "integer", "multipleOf": 7}, {"type": "integer", "multipleOf": 12, "minimum": 5}]),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-c]{1,4}(-[0-9]+)?$"},
            {"type": "string", "pattern": "b", "maxLength": 6},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "uuid"},
        ]
    ),
    st.lists(st.sampled_from([1, 2.5, "x", "é\n", None, True, {"k": [1]}, [], [[]]]), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([1, "one", None, {"a": {"b": []}}, [1, "2"]]).map(lambda value: {"const": value}),
)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, bounds: {"type": "array", "items": items, **bounds},
        inner,
        ranges("minItems", "maxItems", st.integers(0, 3)),
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    )
    merged = st.builds(lambda one, other: {"allOf": [one, other]}, objects(inner), objects(inner))
    any_of = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    counted = st.builds(
        lambda least, more: {"type": "object", "minProperties": least, "maxProperties": least + more},
        st.integers(0, 2),
        st.integers(0, 2),
    )
    return st.one_of(objects(inner), arrays, tuples, any_of, merged, counted)


SCHEMAS = st.recursive(LEAVES, grown, max_leaves=8)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_whatever_the_masks_allow_is_valid_under_the_schema(walker: Walker, schema: dict[str, Any], seed: int) -> None:
    try:
        text = walker.walk(JsonSchema(schema), seed)
    except InvalidRequest:
        return  # nothing satisfies it, or it is refused by name
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    checker.validate(json.loads(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(st.characters(codec="utf-8"), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(value=st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3), indent=st.sampled_from([None, 2]))
def test_any_object_may_be_written_and_indented(walker: Walker, value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if re.search(r"[\x00-\x1f\x7f]|\\u", text.replace("\n", "")):
        return  # escapes that JSON needs for control characters only

    assert walker.accepts(JsonObject(), text)


def test_an_object_is_all_that_json_object_allows(walker: Walker) -> None:
    assert walker.accepts(JsonObject(), '{"a": [1, {"b": null}]}')
    for text in ("[]", "1", ' {"a": 1}', '{"a": 1} ', '{"a": 1,}', "{'a': 1}", '{"a"}'):
        assert not walker.accepts(JsonObject(), text), text


def test_white_space_is_bounded(walker: Walker) -> None:
    assert walker.accepts(JsonObject(), '{\n    "a": 1\n}')
    for blank in ("  ", "\t", "\n\n", "\n" + 21 * " "):
        assert not walker.accepts(JsonObject(), f'{{{blank}"a": 1}}'), repr(blank)


def test_a_recursive_schema_is_followed(walker: Walker) -> None:
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
    assert walker.accepts(JsonSchema(tree), '{"next": {"next": {"next": null}}}')
    assert not walker.accepts(JsonSchema(tree), '{"next": {"next": {}}}')


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, "if"),
        ({"type": "array", "contains": {"type": "null"}}, "contains"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "properties": {"a": {"unevaluatedItems": False}}}, "unevaluatedItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "format": "no-such-format"}, "no-such-format"),
        ({"type": "strnig"}, "strnig"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"enum": []}, "empty"),
        ({"$ref": "#"}, "nothing"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum 0"),
        ({"allOf": [{"type": "number", "exclusiveMaximum": 1}, {"minimum": 0.2}]}, "exclusiveMaximum 1"),
        ({"$defs": {"a/b": {"maximum": 0.5}}, "$ref": "#/$defs/a~1b", "exclusiveMinimum": 0}, "exclusiveMinimum 0"),
        ({"type": "integer", "maximum": 2**60}, "2.53"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_schema_may_not_use_is_named(constraints: Constraints, schema: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named) as caught:
        constraints.compile(JsonSchema(schema))
    assert caught.value.param == "response_format"


# --------------------------------------------------------------------------------- patterns, choices

PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "é", "[a-c]", "[^a]", ".", "\\.", "/", " ", "😀"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        inner.map(lambda item: f"({item}){{0,2}}"),
        inner.map(lambda item: f"({item})?"),
    ),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(pattern=PATTERNS, seed=st.integers(0, 2**32), text=st.text("abcé. /", max_size=6))
def test_a_pattern_allows_what_it_matches_from_end_to_end(walker: Walker, pattern: str, seed: int, text: str) -> None:
    assert re.fullmatch(pattern, walker.walk(Regex(pattern), seed))
    assert walker.accepts(Regex(pattern), text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("pattern", ["^ab$", "", "a\n/b", r"\d{2}", "(?i)é", "a*?", r"\x41|\u{1F600}", '"#" \\/'])
def test_common_ways_of_patterns_are_known(walker: Walker, pattern: str) -> None:
    texts = ["ab", "", "a\n/b", "42", "É", "aaa", "A", "😀", '"#" /', "x"]
    readable = pattern.replace(r"\u{1F600}", "😀")

    assert [walker.accepts(Regex(pattern), text) for text in texts] == [
        bool(re.fullmatch(readable, text)) for text in texts
    ]


@pytest.mark.parametrize("pattern", ["(a", "a)(b", "a\\", "\\", "*", "[", "(?=a)b", r"(a)\1", r"a\b", "a{2,1}"])
def test_what_is_no_pattern_or_is_not_supported_is_refused(constraints: Constraints, pattern: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraints.compile(Regex(pattern))
    assert caught.value.param == "structured_outputs.regex"


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(options=st.lists(st.text('ab é"/\\\n', max_size=6), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_any_walk_ends_at_an_option_and_every_option_can_be_written(
    walker: Walker, options: list[str], seed: int
) -> None:
    choice = Choice(tuple(options))

    assert walker.walk(choice, seed) in options
    assert all(walker.accepts(choice, option) for option in options)
    assert not walker.accepts(choice, "".join(options) + "x")


def test_a_choice_needs_an_option(constraints: Constraints) -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        constraints.compile(Choice(()))


def test_text_may_be_cut_into_tokens_in_every_way(walker: Walker) -> None:
    matcher = walker.constraints.compile(Choice(("hello world",)))
    texts = {walker.pieces[token] for token in walker.allowed(matcher)}

    assert {b"h", b"he"} <= texts


# ------------------------------------------------------------------------------------------ grammars


def test_a_grammar_is_followed_character_by_character(walker: Walker) -> None:
    for text in ("1", "12+3", "(1-(2+3))-4"):
        assert walker.accepts(Grammar(ARITHMETIC), text), text
    for text in ("", "123", "1+", "(1", "1)", "1 + 2"):
        assert not walker.accepts(Grammar(ARITHMETIC), text), text


@pytest.mark.parametrize(
    ("ebnf", "texts", "others"),
    [
        ('root ::= [a-z]+ "x"', ["ax", "xx"], ["x", "ab"]),
        ('root ::= ("a" | "ab") ("c" | "bcd")', ["abcd", "ac", "abc", "abbcd"], ["abd"]),
        ('root ::= "a"\n  | b-2\nb-2 ::= "b" root', ["a", "bba"], ["b"]),
        ('root ::= root "a" | ""', ["", "aaa"], ["b"]),
        (r'root ::= [^"\\\]\-] "\x41\u00e9\U0001F600\n"', ["xAé😀\n", "^Aé😀\n"], ["-Aé😀\n", "]Aé😀\n"]),
        (r"root ::= [\[\]a\-] [-b] [b-]", ["[-b", "]b-", "--b"], ["b-b"]),
        ('root ::= .{2} "é"{1,} # two of anything', ["a\né", "日本éé"], ["aé"]),
        ('root ::= ("a"?){3} "b"{0,1}', ["", "aaab"], ["aaaa"]),
    ],
)
def test_the_ways_of_ebnf_are_known(walker: Walker, ebnf: str, texts: list[str], others: list[str]) -> None:
    assert [text for text in texts if not walker.accepts(Grammar(ebnf), text)] == []
    assert [text for text in others if walker.accepts(Grammar(ebnf), text)] == []


@pytest.mark.parametrize(
    ("ebnf", "problem"),
    [
        ("", "no rule 'root'"),
        ('start ::= "a"', "no rule 'root'"),
        ("root ::= other", "no rule 'other'"),
        ('root ::= "a"\nroot ::= "b"', "line 2.*twice"),
        ('root ::= "a', "line 1.*not understood"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "expected a rule"),
        ('root ::= *"a"', "nothing here to repeat"),
        ("root ::= [z-a]", "range"),
        ("root ::= []", "not understood|without characters"),
        (r'root ::= "\q"', "escape"),
        (r'root ::= "\ud800"', "no character"),
        ('root ::= "a"{3,2}', "most is less"),
        ("root ::= " + "(" * 100, "levels of parentheses"),
        ("root ::= root", "nothing"),
    ],
)
def test_what_is_wrong_in_a_grammar_is_said_with_its_place(constraints: Constraints, ebnf: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as caught:
        constraints.compile(Grammar(ebnf))
    assert caught.value.param == "structured_outputs.grammar"


# -------------------------------------------------------------------------------------------- calls

WEATHER = ToolSpec("weather", parameters={"properties": {"city": {"type": "string", "maxLength": 9}}})
CLOCK = ToolSpec('the "clock"')
ASKED = (Message(role="user", content="What time is it?"),)


@pytest.mark.parametrize(("choice", "names"), [("", {"weather", 'the "clock"'}), ("weather", {"weather"})])
def test_a_call_that_must_come_is_one_that_the_parser_reads(walker: Walker, choice: str, names: set[str]) -> None:
    found: set[str] = set()
    for seed in range(12):
        matcher = walker.constraints.compile_call(ChatPrompt(ASKED, (WEATHER, CLOCK), tool_choice=choice))
        parser = HermesToolParser()
        (call,) = [*parser.feed(walker.follow(matcher, seed)), *parser.finish()]
        assert isinstance(call, ToolCallDelta)
        jsonschema.validate(json.loads(call.arguments), {"type": "object", **(WEATHER.parameters or {})})
        found.add(call.name)
    assert found == names


@pytest.mark.parametrize(
    ("tools", "choice", "problem"),
    [
        ((WEATHER,), "clock", "'clock'"),
        ((), "", "any tool"),
        ((ToolSpec("odd", parameters={"not": {}}),), "odd", "not"),
        ((ToolSpec("long", parameters={"enum": ["a" * 200_000]}),), "", "bytes"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused(
    constraints: Constraints, tools: tuple[ToolSpec, ...], choice: str, problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        constraints.compile_call(ChatPrompt(ASKED, tools, tool_choice=choice))


# -------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("constraint", [JsonObject(), Regex("(?s:.*)"), Grammar("root ::= .*")], ids=str)
def test_special_tokens_and_padding_are_never_inside(walker: Walker, tokenizer: Any, constraint: Constraint) -> None:
    matcher = walker.constraints.compile(constraint)
    for text in ("", "{", '"', "a"):
        matcher.accept_all(walker.letters(text))
        tokens = walker.allowed(matcher)
        assert max(tokens) < tokenizer.get_vocab_size()
        assert walker.ends & tokens == (walker.ends if matcher.satisfied else set())


def test_a_token_that_ends_the_answer_completes_it(walker: Walker) -> None:
    for end in walker.ends:
        matcher = walker.constraints.compile(Regex("a+"))
        matcher.accept_all(walker.letters("a"))
        assert not matcher.complete
        assert walker.ends < walker.allowed(matcher)
        matcher.accept(end)
        assert matcher.complete


def test_a_token_that_may_not_come_is_an_error(walker: Walker) -> None:
    for token in (*walker.letters("b"), *walker.ends):
        with pytest.raises(EngineError):
            walker.constraints.compile(Regex("a+")).accept(token)


def test_without_a_token_that_ends_an_answer_it_ends_where_nothing_may_follow(tokenizer: Any, ends: set[int]) -> None:
    walker = Walker(made(tokenizer, set()), tokenizer, ends)
    matcher = walker.constraints.compile(Regex("ab?"))
    matcher.accept_all(walker.letters("a"))

    inside = {token for token in walker.allowed(matcher) if token < tokenizer.get_vocab_size()}
    assert {walker.pieces[token] for token in inside} == {b"b"}
    matcher.accept_all(walker.letters("b"))
    assert matcher.complete


def test_a_vocabulary_that_cannot_write_the_constraint_is_said_so(word_piece: Any) -> None:
    constraints = made(word_piece, {word_piece.token_to_id("[UNK]")})

    with pytest.raises(InvalidRequest, match="nothing that this model can write"):
        constraints.compile(Choice(("ж",)))
    constraints.compile(Choice((" the", "ж")))


def test_a_copy_goes_its_own_way(walker: Walker) -> None:
    matcher = walker.constraints.compile(Choice(("ab", "ac")))
    matcher.accept_all(walker.letters("a"))
    other = matcher.copy()
    matcher.accept_all(walker.letters("b"))

    assert matcher.complete
    assert not other.complete
    other.accept_all(walker.letters("c"))


# -------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("a" * 3000),
        Grammar("root ::= " + '"a" ' * 1000),
        Choice(tuple(f"option {number}" for number in range(400))),
        JsonSchema({"enum": [f"value {number}" for number in range(400)]}),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_size_is_limited(tokenizer: Any, ends: set[int], constraint: Constraint) -> None:
    with pytest.raises(InvalidRequest, match="2000 bytes"):
        made(tokenizer, ends, bytes=2000).compile(constraint)


def test_nesting_is_limited(constraints: Constraints) -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="levels"):
        constraints.compile(JsonSchema(schema))


def test_what_is_compiled_is_kept_for_the_tenant_who_sent_it(tokenizer: Any, ends: set[int]) -> None:
    constraints = made(tokenizer, ends, cached=2)
    for tenant in ("one", "two", "one", "three"):
        constraints.compile(JsonSchema(PERSON), tenant=tenant)

    assert [tenant for tenant, _ in constraints._kept] == ["one", "three"]


def test_what_is_kept_is_bounded_in_bytes(tokenizer: Any, ends: set[int]) -> None:
    constraints = made(tokenizer, ends, cached_bytes=5000)
    for number in range(20):
        constraints.compile(Regex(f"{number}" + "a" * 1000))

    assert 0 < sum(len(grammar) for _, grammar in constraints._kept) <= 5000


def test_a_constraint_seen_before_costs_next_to_nothing(tokenizer: Any, ends: set[int]) -> None:
    constraints = made(tokenizer, ends)
    many = JsonSchema({"properties": {f"p{number}": {"type": "string"} for number in range(500)}})
    began = time.perf_counter()
    constraints.compile(many)
    first = time.perf_counter() - began
    again = min(_seconds(constraints, many) for _ in range(5))

    assert again < first


def _seconds(constraints: Constraints, constraint: Constraint) -> float:
    began = time.perf_counter()
    constraints.compile(constraint)
    return time.perf_counter() - began


def test_an_answer_that_becomes_too_complex_ends_with_an_error_of_its_own(tokenizer: Any, ends: set[int]) -> None:
    walker = Walker(made(tokenizer, ends, lexer_states=30), tokenizer, ends)

    with pytest.raises(EngineError) as caught:
        walker.walk(Regex("(a|b)*a(a|b){100}"), seed=1)
    assert caught.value.code == "constraint_too_complex"


HOSTILE = {
    "remainders of a huge number": JsonSchema({"type": "integer", "multipleOf": 99_999_999}),
    "remainders of many numbers": JsonSchema({"allOf": [{"type": "integer", "multipleOf": n} for n in (7919, 7907)]}),
    "patterns that must all match": JsonSchema(
        {"allOf": [{"type": "string", "pattern": f"a.{{{count}}}b"} for count in range(1, 30)]}
    ),
}


@pytest.mark.parametrize("constraint", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_would_be_compiled_for_ever_is_refused_in_time_and_remembered(
    tokenizer: Any, ends: set[int], constraint: Constraint
) -> None:
    constraints = made(tokenizer, ends, seconds=0.5)
    for most_s in (20.0, 0.4):
        began = time.monotonic()
        with pytest.raises(InvalidRequest, match=r"0\.5 s"):
            constraints.compile(constraint)
        assert time.monotonic() - began < most_s
    constraints.compile(Choice(("yes", "no")))


def test_what_takes_too_much_memory_is_refused(tokenizer: Any, ends: set[int]) -> None:
    constraints = made(tokenizer, ends, seconds=60, memory_bytes=16 * 1024 * 1024)

    with pytest.raises(InvalidRequest, match="memory"):
        constraints.compile(HOSTILE["remainders of a huge number"])
    constraints.compile(Choice(("yes", "no")))


def test_the_loop_turns_while_hostile_constraints_are_compiled(tokenizer: Any, ends: set[int]) -> None:
    """Python's lock is let go: another thread gets its turns all the while."""
    constraints = made(tokenizer, ends, seconds=1)
    constraints.compile(Choice(("a process for trials is started",)))
    hard = [*HOSTILE.values(), Regex("(a{1000}){1000}"), Regex("|".join(f"w{n}x" for n in range(9000)))]

    def compile_all() -> None:
        for constraint in hard:
            with contextlib.suppress(InvalidRequest):
                constraints.compile(constraint)

    thread = threading.Thread(target=compile_all)
    pauses, last = [], time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        pauses.append(time.perf_counter() - last)
        last = time.perf_counter()
    thread.join()

    assert statistics.quantiles(pauses, n=100)[-1] < 0.1  # 20 ms where nothing else runs


# ------------------------------------------------------------------------------------------- library


def test_a_missing_library_is_said_at_start_up(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(StartupError, match="pip install llguidance"):
        made(tokenizer, set())


def test_importing_brings_nothing_heavy() -> None:
    check = "import sys, fastchat_serve.text; sys.exit(bool({'llguidance', 'numpy'} & sys.modules.keys()))"

    subprocess.run([sys.executable, "-c", check], check=True, timeout=30)
