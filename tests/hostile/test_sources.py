"""What no source file may do, read from its syntax tree: S5, S10, S14, S16, S23, and old libraries."""

from __future__ import annotations

import ast
import re
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(chain((ROOT / "src").rglob("*.py"), (ROOT / "plugins").glob("*/src/**/*.py")))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in SOURCES}

CODE_FROM_DATA = {"cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve", "yaml"}
"""Modules that run what they read, or whose obvious function does."""
RUNNING = {"eval", "exec", "compile", "__import__"}
SHELLS = {("os", "system"), ("os", "popen"), ("pty", "spawn")}


def nodes(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """All nodes of a kind, with the file that they are in."""
    for file, tree in TREES.items():
        yield from ((file, node) for node in ast.walk(tree) if isinstance(node, kind))


def test_the_sources_are_read():
    assert len(TREES) > 60
    assert any(file.startswith("plugins") for file in TREES)


def test_s5_nothing_that_runs_what_it_reads_is_imported():
    imported = {(file, alias.name) for file, node in nodes(ast.Import) for alias in node.names}
    imported |= {(file, node.module) for file, node in nodes(ast.ImportFrom)}

    assert {found for found in imported if str(found[1]).partition(".")[0] in CODE_FROM_DATA} == set()
    assert ("src/fastchat_serve/connection.py", "httptools") in imported


def test_s5_nothing_is_run_that_was_text():
    called = {(file, node.func.id) for file, node in nodes(ast.Call) if isinstance(node.func, ast.Name)}

    assert {found for found in called if found[1] in RUNNING} == set()


def test_s5_loaders_read_data_only():
    """``torch.load`` with its safe mode said out loud, ``numpy.load`` without pickles, no shell."""
    for file, call in nodes(ast.Call):
        if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
            continue
        named = {word.arg: ast.unparse(word.value) for word in call.keywords}
        match call.func.value.id, call.func.attr:
            case "torch", "load":
                assert named.get("weights_only") == "True", (file, call.lineno)
            case (("np" | "numpy"), "load"):
                assert named.get("allow_pickle") != "True", (file, call.lineno)
            case "subprocess", _:
                assert "shell" not in named, (file, call.lineno)
            case module_and_name:
                assert module_and_name not in SHELLS, (file, call.lineno)


def test_s14_keys_are_compared_in_one_place_and_in_constant_time():
    comparing = {file for file, node in nodes(ast.Attribute) if node.attr == "compare_digest"}
    revealing = {file for file, node in nodes(ast.Attribute) if node.attr == "reveal"}

    assert comparing == {"src/fastchat_serve/routes/auth.py"}
    # What hashes them for that, what checks their form at start-up, the clients that send their own, and what hands
    # those to a child of the server's.
    assert revealing == {
        "plugins/fastchat-backend-hf-inference/src/fastchat_backend_hf_inference/place.py",
        "plugins/fastchat-backend-openai/src/fastchat_backend_openai/engine.py",
        "plugins/fastchat-backend-openai/src/fastchat_backend_openai/options.py",
        "src/fastchat_serve/app.py",
        "src/fastchat_serve/cluster.py",
        "src/fastchat_serve/configfile/rules.py",
        "src/fastchat_serve/commands/client.py",
        "src/fastchat_serve/making.py",
    }


def test_s14_nothing_that_is_secret_is_compared_by_its_characters():
    secret = re.compile(r"\b(api_?key|secret|password|digest|authorization|bearer_token)\b", re.IGNORECASE)
    for file, node in nodes(ast.Compare):
        if any(isinstance(operator, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for operator in node.ops):
            operands = [node.left, *node.comparators]
            names = " ".join(ast.unparse(one) for one in operands if not isinstance(one, ast.Constant))
            assert not secret.search(names), (file, node.lineno, ast.unparse(node))


def test_s23_no_client_of_ours_follows_a_redirect():
    for file, word in nodes(ast.keyword):
        if word.arg == "follow_redirects":
            assert ast.unparse(word.value) == "False", file


# --------------------------------------------------------------------------------------------- patterns


OPERATORS_TEXT = re.compile(
    r"fastchat_serve/(configfile|commands|config\.py|checkpoint|testing)"
    r"|fastchat_backend_\w+/(options|devices|checkpoint|files|loading|lora|arguments)"
)
"""Files whose patterns see a config or a command line, never a request."""
FUNCTIONS = {f"re.{name}" for name in ("compile", "match", "search", "fullmatch", "sub", "split", "findall")}


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Every regular expression in the sources that may see a request."""
    for file, call in nodes(ast.Call):
        if ast.unparse(call.func) in FUNCTIONS and not OPERATORS_TEXT.search(file):
            flags = re.DOTALL if "DOTALL" in ast.unparse(call) else 0
            assert isinstance(call.args[0], ast.Constant), f"{file}:{call.lineno}: a pattern that is made at run time"
            yield f"{file}:{call.lineno}", re.compile(call.args[0].value, flags)


PATTERNS = dict(patterns())
LENGTH = 20_000
PATIENCE_S = 1.0
"""For one text; a quadratic search takes several, a linear one a thousandth of it."""


@pytest.mark.parametrize("place", PATTERNS)
def test_s10_no_pattern_repeats_what_repeats(place):
    """Such as ``(a+)+``: exponential. Possessive and atomic groups do not go back, so they may."""
    assert depth_of_repeats(re._parser.parse(PATTERNS[place].pattern)) <= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", PATTERNS)
def test_s10_every_pattern_takes_linear_time(place):
    """On long texts of what it is made of: each of its characters repeated, and each pair of them."""
    pattern = PATTERNS[place]
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    letters = sorted({*re.sub(r"\\[A-Za-z]|[()|?*+^$]", "", source), *"a0 \n"})[:40]
    beginnings = ["", *(letter for letter in letters if not letter.isalnum())]
    for begin in beginnings:
        for letter in letters:
            text: Any = begin + letter * LENGTH + "\0"
            began = time.process_time()
            for operation in (pattern.search, pattern.fullmatch):
                operation(text if isinstance(pattern.pattern, str) else text.encode("latin-1", "replace"))
            assert time.process_time() - began < PATIENCE_S, (begin, letter)


def depth_of_repeats(parsed: Any) -> int:
    """How many unbounded repeats are inside each other, of those that can give back what they took."""
    constants = re._constants  # type: ignore[attr-defined]
    deepest = 0
    for operation, argument in parsed:
        if operation in (constants.POSSESSIVE_REPEAT, constants.ATOMIC_GROUP):
            continue
        here, inner = 0, []
        if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            _, most, body = argument
            here, inner = int(most is constants.MAXREPEAT), [body]
        elif operation is constants.SUBPATTERN:
            inner = [argument[-1]]
        elif operation is constants.BRANCH:
            inner = argument[1]
        elif operation in (constants.ASSERT, constants.ASSERT_NOT):
            inner = [argument[1]]
        deepest = max(deepest, here + max(map(depth_of_repeats, inner), default=0))
    return deepest


def test_the_check_of_patterns_knows_a_bad_one():
    parse = re._parser.parse  # type: ignore[attr-defined]

    assert depth_of_repeats(parse("(a+)+$")) == 2
    assert depth_of_repeats(parse("(?:x|(?:a*b)*)*")) == 3
    assert depth_of_repeats(parse("(?:a++)*+")) == 0


# -------------------------------------------------------------------------------------------- libraries

OLDEST = MappingProxyType(
    {
        "litestar": "2.20",  # CVE-2026-25479: dots in allowed hosts; trusted X-Forwarded-For and -Host before
        "jinja2": "3.1.6",  # escapes from the sandbox
        "h11": "0.16",  # CVE-2025-43859: chunked bodies that hide requests
        "httptools": "0.6.4",  # llhttp's leniency about framing
        "uvicorn": "0.35",
    }
)
"""An audit tool needs a database, which is not everywhere; so what matters is kept by hand."""


@pytest.mark.parametrize("library", OLDEST)
def test_no_library_is_older_than_its_last_known_hole(library):
    assert numbers(version(library)) >= numbers(OLDEST[library])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in wanted:
        found = re.match(rf"{library}>=([\d.]+)", requirement)
        assert found is None or numbers(found[1]) >= numbers(OLDEST[library]), "an older one could be installed"


def numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


def test_patterns_are_found():
    assert {place.partition(":")[0] for place in PATTERNS} >= {
        "src/fastchat_serve/routes/exchange.py",
        "src/fastchat_serve/routes/hosts.py",
        "src/fastchat_serve/engines/echo_tokens.py",
    }
    assert sys.version_info >= (3, 11), "possessive repeats"
