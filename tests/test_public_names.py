"""What is public is listed, is there, and is documented; importing it is cheap and has no side effects."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fastchat_serve

SOURCES = Path(fastchat_serve.__file__).parent


def dotted(path: Path) -> str:
    parts = ("fastchat_serve", *path.relative_to(SOURCES).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sorted(SOURCES.rglob("*.py")) if path.stem != "__main__"}
CHECKS = {name for name in MODULES if name.startswith("fastchat_serve.testing.test_")}
"""Read by pytest; nobody imports them."""


def run_python(code: str) -> Any:
    """What `code` prints as JSON, in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - CHECKS))
def test_every_module_lists_its_public_names_and_each_is_there(name: str) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "__all__"):
        body = ast.parse(MODULES[name].read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), "only a package without names needs no list"
        return

    assert len(module.__all__) == len(set(module.__all__))
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_takes_from_another_is_on_the_others_list(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastchat_serve"):
            module = importlib.import_module(node.module or "")
            taken = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES}
            assert taken <= set(getattr(module, "__all__", ())), f"from {node.module}"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())

    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("name", sorted(set(fastchat_serve.__all__) - {"__version__"}))
def test_every_name_a_backend_author_needs_is_documented(name: str) -> None:
    value = getattr(fastchat_serve, name)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return  # constants and aliases are documented where they stand
    doc = inspect.getdoc(value) if inspect.isfunction(value) else value.__dict__.get("__doc__")
    documented_by_its_call = inspect.getdoc(value.__dict__["__call__"]) if "__call__" in vars(value) else None

    assert doc or documented_by_its_call


def test_contract_types_are_immutable() -> None:
    for name in fastchat_serve.__all__:
        value = getattr(fastchat_serve, name)
        if inspect.isclass(value) and issubclass(value, msgspec.Struct):
            assert value.__struct_config__.frozen, name


MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "Counter", "OrderedDict", "deque", "count"}
MUTABLE_NODES = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp


def mutable_state(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.append(f"line {node.lineno}: global {', '.join(node.names)}")
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
                name = ast.unparse(target)
            case _:
                continue
        called = ast.unparse(value.func).rpartition(".")[2] if isinstance(value, ast.Call) else ""
        if name != "__all__" and (isinstance(value, MUTABLE_NODES) or called in MUTABLE_CALLS):
            found.append(f"line {statement.lineno}: {name}")
    return found


def test_mutable_state_is_recognised() -> None:
    source = "a = []\nb: dict = {}\nc = set()\nd = MappingProxyType({})\n__all__ = ['a']\n"
    source += "def f():\n    global a\n    x = []\n"

    assert mutable_state(ast.parse(source)) == ["line 7: global a", "line 1: a", "line 2: b", "line 3: c"]


@pytest.mark.parametrize("name", MODULES)
def test_no_module_has_mutable_state(name: str) -> None:
    assert mutable_state(ast.parse(MODULES[name].read_text())) == []


def test_importing_reads_nothing_from_the_environment() -> None:
    """What configures the server is the config, at the time it is read."""
    readers = run_python(
        f"""
import importlib, json, os, sys

readers = []
original = type(os.environ).__getitem__

def spying(environ, key):
    frame = sys._getframe(1)
    while frame.f_code.co_filename.endswith(("os.py", "_collections_abc.py")) or "<frozen" in frame.f_code.co_filename:
        frame = frame.f_back
    if frame.f_code.co_filename.startswith({str(SOURCES)!r}):
        readers.append([frame.f_code.co_filename, key])
    return original(environ, key)

type(os.environ).__getitem__ = spying
for name in {list(MODULES)!r}:
    importlib.import_module(name)
print(json.dumps(readers))
"""
    )
    assert readers == []


def loaded_by(*modules: str) -> set[str]:
    """The packages that importing `modules` brings."""
    return set(
        run_python(
            f"import sys, json\nfor name in {modules!r}: __import__(name)\n"
            "print(json.dumps([name for name in sys.modules if '.' not in name]))"
        )
    )


def test_the_public_names_and_the_command_line_are_light() -> None:
    """``fastchat-serve --help`` is instant."""
    heavy = {"litestar", "uvicorn", "httpx", "jinja2", "rich", "prometheus_client", "numpy", "pydantic", "torch"}

    assert loaded_by("fastchat_serve", "fastchat_serve.cli") & heavy == set()


def test_a_server_without_models_does_not_pay_for_what_only_models_need() -> None:
    heavy = {"torch", "transformers", "tokenizers", "numpy", "pydantic", "jinja2"}

    assert loaded_by("fastchat_serve.app", "fastchat_serve.server", "fastchat_serve.engines.echo") & heavy == set()
