"""Who may import whom: the floors of the house, read from the imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "fastchat_serve"

FLOORS = {
    "words": {
        *("engine", "capabilities", "constraints", "requests", "requirements"),
        *("errors", "config", "configfile", "protocol", "policy", "draws"),
    },
    "plugins": {"__init__", "hookspecs", "plugins", "progress", "push", "text", "stepping", "checkpoint", "engines"},
    # The conformance kit drives engines through a real worker and dispatcher, so it stands on their floor; it is no
    # part of the product, and nothing imports it.
    "roles": {"simulation", "worker", "controller", "fastchat", "watchdog", "testing"},
    "HTTP": {"routes"},
    "assembly": {
        "app",
        "child",
        "cluster",
        "quiet",
        "tls",
        "making",
        "processes",
        "server",
        "connection",
        "cycle",
        "logs",
        "descriptors",
        "cli",
        "__main__",
        "commands",
    },
}
HTTP_LIBRARIES = {"litestar", "uvicorn", "starlette", "httptools"}
NETWORK_LIBRARIES = {"httpx", "socket", "aiohttp", "requests", "urllib.request", "http.client"}
NETWORK_FILES = {"worker.link", "worker.dial", "fastchat.client"}
SOCKET_PAIRS = {"worker.process"}
"""It reaches nobody but its own child."""
ENGINE_LIBRARIES = {"torch", "transformers", "vllm", "sglang", "mlx", "mlx_lm", "accelerate", "safetensors"}
SLOW_TO_IMPORT = {"numpy", "pydantic", "tokenizers"}
PUBLIC_MODULES = {"fastchat_serve", "fastchat_serve.checkpoint", "fastchat_serve.stepping", "fastchat_serve.text"}


def module_name(path: Path) -> str:
    """``worker.local``; a package is called by its name, the top one ``__init__``."""
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


MODULES = {module_name(path): path for path in sorted(SOURCES.rglob("*.py"))}


def floor_of(module: str) -> int:
    part = module.partition(".")[0]
    for number, parts in enumerate(FLOORS.values()):
        if part in parts:
            return number
    raise AssertionError(f"{module} is on no floor: give it one in DESIGN.md and here")


def imports(path: Path, *, lazy: bool = True) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it); with `lazy`, those inside functions too."""
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        match node:
            case ast.Import():
                yield from ((alias.name, None) for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path} has a relative import"
                yield from ((node.module or "", alias.name) for alias in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if not lazy:
                pass
            case ast.If(test=ast.Name("TYPE_CHECKING")) if not lazy:
                pass
            case _:
                nodes.extend(ast.iter_child_nodes(node))  # type: ignore[arg-type]


def libraries(path: Path, *, lazy: bool = True) -> set[str]:
    """What a file imports from elsewhere: ``urllib.parse``, and ``urllib`` as well."""
    found = set()
    for module, name in imports(path, lazy=lazy):
        found |= {module.partition(".")[0], module, f"{module}.{name}"}
    return found


def own_imports(path: Path, *, lazy: bool = True) -> set[str]:
    """The modules of ours that a file imports."""
    found = set()
    for module, name in imports(path, lazy=lazy):
        if module.partition(".")[0] == "fastchat_serve":
            within = module.partition(".")[2]
            submodule = ".".join(part for part in (within, name) if part)
            found.add(submodule if submodule in MODULES else within or "__init__")
    return found


def drawing() -> str:
    """The floors as they are built, the highest first: each part, and what it stands on."""
    stands_on: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        part = module.partition(".")[0]
        below = {other.partition(".")[0] for other in own_imports(path)}
        stands_on.setdefault(part, set()).update(below - {part})
    lines = []
    for number, (title, _) in reversed(list(enumerate(FLOORS.items()))):
        lines.append(f"{number} {title}")
        parts = sorted(part for part in stands_on if floor_of(part) == number)
        lines.extend(f"    {part:<12} {' '.join(sorted(stands_on[part]))}" for part in parts)
    return "\n".join(lines)


def test_a_file_imports_its_own_floor_or_lower() -> None:
    climbing = [
        f"{module} (floor {floor_of(module)}) imports {other} (floor {floor_of(other)})"
        for module, path in MODULES.items()
        for other in own_imports(path)
        if floor_of(other) > floor_of(module)
    ]
    assert not climbing, "\n".join([*climbing, "", drawing()])


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: own_imports(path, lazy=False) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{' <- '.join(error.args[1])}\n\n{drawing()}")


def test_only_the_upper_floors_know_http() -> None:
    knowing = {module for module, path in MODULES.items() if libraries(path) & HTTP_LIBRARIES}

    assert {module for module in knowing if floor_of(module) < 3} == set()
    assert "app" in knowing, "the test reads imports"


def test_below_http_only_the_links_know_the_network() -> None:
    knowing = {
        module for module, path in MODULES.items() if floor_of(module) < 3 and libraries(path) & NETWORK_LIBRARIES
    }

    assert knowing <= NETWORK_FILES | SOCKET_PAIRS


def test_nobody_in_the_core_imports_an_engine_library() -> None:
    assert {module for module, path in MODULES.items() if libraries(path) & ENGINE_LIBRARIES} == set()


def test_what_is_slow_to_import_waits_until_it_is_needed() -> None:
    assert {module for module, path in MODULES.items() if libraries(path, lazy=False) & SLOW_TO_IMPORT} == set()


def plugin_sources() -> list[Path]:
    return sorted(path for path in (ROOT / "plugins").glob("*/src/**/*.py"))


@pytest.mark.parametrize("path", plugin_sources(), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_plugins_import_public_names_only(path: Path) -> None:
    for module, name in imports(path):
        if module.partition(".")[0] == "fastchat_serve":
            assert module in PUBLIC_MODULES, f"{path} imports {module}"
            __import__(module)
            assert name in sys.modules[module].__all__, f"{path} imports {name} from {module}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").glob("*/src/*/__init__.py")), ids=lambda path: path.parent.name
)
def test_the_module_with_a_plugins_hooks_is_light(path: Path) -> None:
    """It is imported to list plugins and to check a config: the engine's library waits for the factory."""
    pending, seen = [path], set[Path]()
    while pending:
        source = pending.pop()
        seen.add(source)
        assert not libraries(source, lazy=False) & (ENGINE_LIBRARIES | SLOW_TO_IMPORT), source
        for module, _ in imports(source, lazy=False):
            package, _, within = module.partition(".")
            sibling = path.parent / f"{within.replace('.', '/')}.py"
            if package == path.parent.name and sibling.exists() and sibling not in seen:
                pending.append(sibling)
