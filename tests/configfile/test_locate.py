"""The places of keys and values agree with what `tomllib` reads."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastchat_serve.configfile.locate import locate, split_key
from fastchat_serve.configfile.places import KeyPath

NAMES = st.sampled_from(["a", "b-c", "1", "with.dot", 'quo"te', "日本", "", "[x]", "# no", "\n"])
SCALARS = st.one_of(
    st.integers(-(2**40), 2**40).map(str),
    st.sampled_from(["true", "1.5e3", "inf", "1979-05-27 07:32:00Z", "07:32:00", "0xff", "1_000"]),
    st.sampled_from(['"a # [b] = {"', r'"\" \\ é"', "'it\"s \\'", '""', "''"]),
    st.sampled_from(['"""\n[a]\nb = "" \\""" """', "'''\n# it's\n'''''", '"""x"""""', '"""\\\n  y"""']),
)
SPACE = st.sampled_from(["", " ", "\t"])
BREAK_BEFORE = st.sampled_from(["", "\n", "# [c]\n"])
COMMENT = st.sampled_from(["", " # = ]"])
BREAK = st.sampled_from(["", "\n", " # a ] comment\n  "])


@st.composite
def keys(draw: st.DrawFn, name: str) -> str:
    """`name` in one of the forms that TOML has for it."""
    forms = ['"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"']
    if name and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name):
        forms.append(name)
    if "'" not in name and "\n" not in name:
        forms.append(f"'{name}'")
    return draw(SPACE) + draw(st.sampled_from(forms)) + draw(SPACE)


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.sampled_from(["scalar", "scalar", "list", "table"])) if depth else "scalar"
    if kind == "list":
        items = [draw(BREAK) + draw(values(depth - 1)) + draw(BREAK) for _ in range(draw(st.integers(0, 3)))]
        last_comma = "," if draw(st.booleans()) and items else ""
        return "[" + ",".join(items) + last_comma + draw(BREAK) + "]"
    if kind == "table":
        names = draw(st.lists(NAMES, max_size=3, unique=True))
        return "{" + ",".join([draw(pairs(name, depth - 1)) for name in names]) + " }"
    return draw(SCALARS)


@st.composite
def pairs(draw: st.DrawFn, name: str, depth: int = 2) -> str:
    dotted = [name, *draw(st.lists(NAMES, max_size=2))]
    key = ".".join([draw(keys(step)) for step in dotted])
    return key + "=" + draw(SPACE) + draw(values(depth))


@st.composite
def documents(draw: st.DrawFn) -> str:
    """TOML with tables, lists of tables, sub-tables of list items, dotted and quoted keys, and comments."""
    parts = [draw(pairs(f"0{name}")) for name in draw(st.lists(NAMES, max_size=2, unique=True))]
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        is_list = draw(st.booleans())
        for _ in range(draw(st.integers(1, 3)) if is_list else 1):
            key = draw(keys(name))
            parts.append(f"[[{key}]]" if is_list else f"[{key}]")
            parts += [draw(pairs(inner)) for inner in draw(st.lists(NAMES, max_size=2, unique=True))]
            if draw(st.booleans()):
                parts.append(f"[{key}.{draw(keys('sub'))}]")
                parts += [draw(pairs(inner)) for inner in draw(st.lists(NAMES, max_size=2, unique=True))]
    return "\n".join(draw(BREAK_BEFORE) + part + draw(COMMENT) for part in parts)


def leaves(node: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """Every path in `node`, with its value."""
    found = {path: node} if path else {}
    for step, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        found |= leaves(inner, (*path, step))
    return found


@given(documents())
def test_every_key_of_a_document_is_found_and_no_other(text: str) -> None:
    spots = locate(text)

    assert set(spots.keys) == set(spots.values) == set(leaves(tomllib.loads(text)))


@given(documents())
def test_at_the_place_of_a_value_stands_that_value(text: str) -> None:
    lines = text.split("\n")
    spots = locate(text)

    for path, value in leaves(tomllib.loads(text)).items():
        line, column = spots.values[path]
        rest = "\n".join([lines[line - 1][column - 1 :], *lines[line:]])
        if not isinstance(value, dict | list):
            assert any(_reads_as(rest[:end], value) for end in range(1, len(rest) + 1)), (path, rest)
        elif spots.values[path] == spots.keys[path]:
            continue  # a table by dotted keys has no text of its own
        else:
            assert rest[0] in "[{"


def _reads_as(text: str, value: Any) -> bool:
    try:
        return bool(tomllib.loads(f"v = {text}") == {"v": value})
    except tomllib.TOMLDecodeError:
        return False


@given(documents())
def test_at_the_place_of_a_key_stands_that_key(text: str) -> None:
    lines = text.split("\n")
    spots = locate(text)

    for path, (line, column) in spots.keys.items():
        if isinstance(path[-1], str):
            rest = lines[line - 1][column - 1 :]
            steps = [split_key(f"{rest[:end]}=") for end in range(1, len(rest) + 1)]
            whole = [found[0] for found in steps if found is not None and found[1] == "" and len(found[0]) == 1]
            assert whole[-1] == (path[-1],)


@given(st.text(alphabet=list("ab.=[]{}\"'#,\n\\ 1-"), max_size=60))
def test_what_tomllib_reads_is_located_and_what_it_does_not_read_ends_quietly(text: str) -> None:
    spots = locate(text)

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(spots.keys) == set(leaves(document))


def test_lines_and_columns_count_from_one() -> None:
    spots = locate('[server]\nport = 1\n\n[[worker]]\n  names = ["a",\n  "b"]\n')

    assert spots.keys["server",] == (1, 2)
    assert spots.values["server",] == (1, 1)
    assert spots.keys["server", "port"] == (2, 1)
    assert spots.values["server", "port"] == (2, 8)
    assert spots.values["worker", 0] == (4, 1)
    assert spots.values["worker", 0, "names", 1] == (6, 3)


def test_a_list_of_tables_stands_at_its_first_header() -> None:
    spots = locate('[[worker]]\nbackend = "a"\n[[worker]]\nbackend = "b"\n')

    assert spots.values["worker",] == spots.values["worker", 0] == (1, 1)
    assert spots.values["worker", 1] == (3, 1)


def test_a_key_splits_from_its_value_at_the_first_equals_sign_outside_quotes() -> None:
    assert split_key("server.port=9000") == (("server", "port"), "9000")
    assert split_key('worker.0.options."a=b.c" = x=y') == (("worker", "0", "options", "a=b.c"), " x=y")
    assert split_key("server.port") is None
    assert split_key("=1") is None
    assert split_key("a b=1") is None
    assert split_key("") is None
