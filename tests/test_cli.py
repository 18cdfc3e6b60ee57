"""Arguments in, output and an exit code out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fastchat_serve import __version__
from fastchat_serve.cli import main
from tests.conftest import ECHO
from tests.end_to_end.process import install_plugin

WORKERS = "model names backend slots queue"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(ECHO)
    return path


def test_check_says_what_would_run_and_exits_with_0(config, capsys):
    assert main(["check", "--config", str(config)]) == 0

    out = capsys.readouterr().out
    assert "good" in out
    assert "echo" in out


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            '[api]\nkeys = ["k"]\ncontrollers = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]',
            ["roles api", "address http://127.0.0.1:8080", "controllers http://10.0.0.1:8000, http://10.0.0.2:8000"],
        ),
        ("[controller]", ["roles controller", "address http://127.0.0.1:8080"]),
        (
            '[[worker]]\nbackend = "echo"\nreach = "out"\ncontrollers = ["http://10.0.0.1:8000"]',
            [
                "roles worker",
                "address none, it dials out",
                "controllers http://10.0.0.1:8000",
                WORKERS,
                "echo echo 16 64",
            ],
        ),
    ],
)
def test_check_says_of_any_role_what_it_is_and_whom_it_looks_for(tmp_path, capsys, tables, said):
    path = tmp_path / "config.toml"
    path.write_text(f'[server]\nport = 8080\n[cluster]\ntoken = "t"\n{tables}\n')

    assert main(["check", "--config", str(path)]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [f"{path}: good", *said]


def test_check_of_a_broken_config_says_where_and_exits_with_2(config, capsys):
    """G11."""
    config.write_text(ECHO + "concurency = 3\n")

    assert main(["check", "--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert "config.toml:7:1: worker.0.concurency" in err
    assert "concurrency" in err.replace("concurency", "")
    assert "Traceback" not in err


def test_check_types_the_options_of_the_backend(config, capsys):
    assert main(["check", "--config", str(config), "--set", "worker.0.options.delay_ms=soon"]) == 2
    assert "worker.0.options.delay_ms" in capsys.readouterr().err


def test_overrides_reach_the_config(config, capsys):
    assert main(["check", "--config", str(config), "--set", "worker.0.concurrency=7"]) == 0
    assert "7" in capsys.readouterr().out


def test_check_prints_the_json_schema_of_the_config(capsys):
    assert main(["check", "--json-schema"]) == 0

    schema = json.loads(capsys.readouterr().out)
    assert "worker" in json.dumps(schema["properties"])
    assert "delay_ms" in json.dumps(schema)


def test_plugins_lists_what_is_installed(capsys):
    assert main(["plugins"]) in (0, 1)
    assert "engine" in capsys.readouterr().out.replace("\n", "")


def test_a_broken_plugin_is_listed_with_its_cause_and_the_exit_code_is_1(tmp_path, monkeypatch, capsys):
    """F41."""
    install_plugin(tmp_path, "shattered", "raise ImportError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)

    assert main(["plugins"]) == 1
    out = capsys.readouterr().out
    assert "shattered" in out
    assert "no such library" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say what to serve"),
        (["--config", "/nowhere/config.toml"], "config.toml"),
        (["--config", "a", "--model", "b"], "not both"),
        (["--model", "x", "--backend", "none"], "none"),
    ],
)
def test_what_cannot_start_exits_with_2_and_says_why(arguments, says, capsys):
    assert main(arguments) == 2

    err = capsys.readouterr().err
    assert err.startswith("fastchat-serve: ")
    assert says in err


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], ["check", "--set"]])
def test_bad_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert left.value.code == 2
    assert "usage: fastchat-serve" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])

    assert left.value.code == 0
    assert capsys.readouterr().out == f"fastchat-serve {__version__}\n"


def test_help_imports_no_server():
    """So that it is instant."""
    code = (
        "import sys; from fastchat_serve.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    modules = done.stdout.splitlines()[-1].split()

    assert "usage: fastchat-serve" in done.stdout
    assert not {"litestar", "uvicorn", "rich", "numpy", "torch", "fastchat_serve.app"} & set(modules)


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "fastchat_serve", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == f"fastchat-serve {__version__}\n"


COMMANDS = (
    "check",
    "plugins",
    "models",
    "workers",
    "drain",
    "explain",
    "chat",
    "controller",
    "worker",
    "api",
    "message",
)
ACTIONS = ("load", "unload", "reload", "alias", "unalias")


@pytest.mark.parametrize("command", [*COMMANDS, "simulate", "docs", *(f"models {action}" for action in ACTIONS)])
def test_every_command_says_in_its_help_what_it_does(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])

    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: fastchat-serve {command}")
    assert description[0].isupper()
    assert description.endswith(".")
