"""The command line: arguments in, one command run, an exit code out.

Exit codes: 0 done, 1 failed, 2 refused to start (bad arguments, config or plugin), 130 interrupted.
Only the command that was asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastchat_serve import __version__
from fastchat_serve.commands.fastchat_flags import arguments
from fastchat_serve.errors import StartupError

__all__ = ["DEFAULT_URL", "main"]

DEFAULT_URL = "http://127.0.0.1:8000"
_TOKEN_IS = "cluster.token; default: the environment's FASTCHAT_TOKEN"
_KEY_IS = "default: the environment's OPENAI_API_KEY"
_FLAGS_MEAN = "The config that the flags mean is printed first; `fastchat-serve docs fastchat` has more."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fastchat-serve`` with `argv` (default: those of the process)."""
    args = _parser().parse_args(argv)
    try:
        command = importlib.import_module(f"fastchat_serve.commands.{args.command or 'serve'}")
        code: int = command.run(args)
        sys.stdout.flush()
    except StartupError as error:
        for line in (str(error), *getattr(error, "__notes__", ())):
            print(f"fastchat-serve: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more on its way out
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastchat-serve",
        description="Serve language models behind one OpenAI-compatible endpoint.",
        epilog="Without a command it serves: fastchat-serve --config conf/local.toml",
    )
    parser.add_argument("--version", action="version", version=f"fastchat-serve {__version__}")
    _config_arguments(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        return _described(commands, name, what)

    check = command("check", "validate a config without starting anything")
    _config_arguments(check)
    check.add_argument("--json-schema", action="store_true", help="print the JSON Schema of the config instead")
    command("plugins", "list installed plugins: distribution, version, contract, state")
    models = command("models", "list the models of a server; load, unload, reload and rename them")
    _client_arguments(models)
    _list_argument(models)
    _model_actions(models)
    workers = command("workers", "list the workers of a server")
    _reader_arguments(workers)
    drain = command("drain", "let a worker, a model, or a whole process, finish what it has, and go")
    drained = drain.add_mutually_exclusive_group(required=True)
    drained.add_argument("name", nargs="?", metavar="NAME", help="of a model: all its workers; or the id of one worker")
    drained.add_argument("--process", action="store_true", help="the process at URL itself, as SIGTERM does")
    _operator_arguments(drain)
    explain = command("explain", "say why a request went to the worker it went to")
    explain.add_argument("request_id", metavar="REQUEST_ID", help="the x-request-id of its reply")
    _reader_arguments(explain)
    _chat_arguments(command("chat", "chat in the terminal, with a server or a model in this process"))
    for name, add, what in (
        ("controller", arguments.add_controller, "a controller, by FastChat's flags"),
        ("worker", arguments.add_worker, "a worker, by FastChat's flags"),
        ("api", arguments.add_api, "an API server, by FastChat's flags"),
    ):
        add(commands.add_parser(name, help=f"serve {what}", description=f"Serve {what}. {_FLAGS_MEAN}"))
    message = command("message", "send one message, as FastChat's test_message does")
    arguments.add_message(message)
    _client_arguments(message)
    _simulate_arguments(command("simulate", "try a fleet that does not exist on a trace"))
    docs = command("docs", "read the manual")
    docs.add_argument("topic", nargs="?", help="a page; without one, the list of pages")
    return parser


def _described(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    """A command that says `what` it does in the list of commands and in its own help."""
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def _model_actions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the models of a server, or change what it serves: fastchat-serve models ACTION --help has more."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    load = _described(actions, "load", "load a model in the process at URL, or in that of another worker")
    load.add_argument("model", metavar="ID", help="a plugin's model, a folder, or a hub id")
    load.add_argument("--backend", default="hf", metavar="NAME", help="engine for it (default: %(default)s)")
    load.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="a key of its [[worker]] table, for instance options.device=cpu; may be repeated",
    )
    load.add_argument("--beside", metavar="WORKER_ID", help="in the process of this worker, on whatever node it is")
    unload = _described(actions, "unload", "drain and unload a model, or one of its workers")
    reload = _described(actions, "reload", "load a model anew, or one of its workers")
    for each in (unload, reload):
        each.add_argument("name", metavar="NAME", help="of a model, or the id of a worker")
    alias = _described(actions, "alias", "give a model another name")
    alias.add_argument("name", metavar="NAME", help="what it is to be called as well, and no other model is")
    alias.add_argument("model", metavar="MODEL")
    unalias = _described(actions, "unalias", "take such a name away")
    unalias.add_argument("name", metavar="NAME")
    for each in (load, unload, reload, alias, unalias):
        _operator_arguments(each, default_url=argparse.SUPPRESS)  # which leaves it to the `--url` before the action


def _operator_arguments(parser: argparse.ArgumentParser, default_url: str = DEFAULT_URL) -> None:
    parser.add_argument("--url", default=default_url, metavar="URL", help=f"a running server (default: {DEFAULT_URL})")
    parser.add_argument("--token", metavar="TOKEN", help=_TOKEN_IS)
    _authority_argument(parser)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file that says what to run")
    parser.add_argument("--model", metavar="ID", help="instead of a file: a plugin's model, a folder, or a hub id")
    parser.add_argument("--backend", default="hf", metavar="NAME", help="engine for --model (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the config, for instance worker.0.options.device=cpu; may be repeated",
    )


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Chat in the terminal. With --url: with a running server, over HTTP. With --config or --model: with a model "
        f"in this process. With none of these: with {DEFAULT_URL}. "
        "/help in the chat lists its commands. Ctrl-C stops an answer; at an empty prompt it leaves, as Ctrl-D does. "
        "Input that is piped in is one message a line."
    )
    _config_arguments(parser)
    _client_arguments(parser, default_url=None)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.7, metavar="T", help="0 to 2, 0 is greedy (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=_count, default=512, metavar="N", help="at most, per answer (default: %(default)s)"
    )


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send a trace of requests to simulated workers, once for each dispatch policy, and compare what comes of it. "
        "The manual's page 'simulate' has the format of both files."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML file that describes the fleet")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="requests; without it they are made up")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write two charts there, as SVG")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the file, for instance fleet.0.count=20; may be repeated",
    )


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _client_arguments(parser: argparse.ArgumentParser, default_url: str | None = DEFAULT_URL) -> None:
    shown = " (default: %(default)s)" if default_url else ""
    parser.add_argument("--url", default=default_url, metavar="URL", help=f"a running server{shown}")
    parser.add_argument("--api-key", metavar="KEY", help=_KEY_IS)
    _authority_argument(parser)


def _reader_arguments(parser: argparse.ArgumentParser) -> None:
    """Of commands that only look, which clients may as well as operators."""
    parser.add_argument("--url", default=DEFAULT_URL, metavar="URL", help="a running server (default: %(default)s)")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--token", metavar="TOKEN", help=_TOKEN_IS)
    shown.add_argument("--api-key", metavar="KEY", help=f"instead of a token; {_KEY_IS}")
    _authority_argument(parser)
    _list_argument(parser)


def _authority_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS if parser.get_default("url") is argparse.SUPPRESS else None,
        help="PEM file of the authority to believe for https; default: the environment's SSL_CERT_FILE",
    )


def _list_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the server's reply as it is")
