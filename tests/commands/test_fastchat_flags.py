"""``fastchat-serve controller``, ``worker`` and ``api``: FastChat's flags, as a config and as a process."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fastchat_serve.commands.fastchat_flags import arguments, tables
from fastchat_serve.commands.fastchat_flags.start import as_toml
from fastchat_serve.configfile.load import config_from_tables, convert_options, load_config
from fastchat_serve.errors import StartupError
from tests.docs.backends_here import backends
from tests.docs.test_fastchat_flags import FLAGS

Meaning = tables.Meaning
ROLES: dict[str, tuple[Callable[..., None], Callable[..., Meaning]]] = {
    "controller": (arguments.add_controller, tables.controller),
    "worker": (arguments.add_worker, tables.worker),
    "api": (arguments.add_api, tables.api),
}


def meaning(role: str, flags: str = "", **environ: str) -> Meaning:
    add, of = ROLES[role]
    parser = argparse.ArgumentParser(exit_on_error=False)
    add(parser)
    return of(parser.parse_args(flags.split()), environ)


def worker(flags: str = "", **environ: str) -> Mapping[str, Any]:
    """Its one worker."""
    (table,) = meaning("worker", flags, **environ).tables["worker"]
    return table  # type: ignore[no-any-return]


def parser_of(role: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    ROLES[role][0](parser)
    return parser


# ----------------------------------------------------------------------------------------------- meaning


@pytest.mark.parametrize("role", ROLES)
def test_what_flags_mean_is_a_config_that_holds_together(role: str) -> None:
    meant = meaning(role).tables
    config = config_from_tables(meant, environ={})

    assert config.fastchat.enabled
    assert config_from_tables(tomllib.loads(as_toml(meant)), environ={}).server == config.server


def test_every_flag_of_its_worker_is_taken() -> None:
    """They are those that the manual has."""
    taken = {flag for action in parser_of("worker")._actions for flag in action.option_strings}

    assert {flag for flag in FLAGS if flag.startswith("--")} <= taken


def test_beginnings_of_flags_are_taken() -> None:
    flags = "--controller http://c:1 --worker http://w:2 --model-name a,b --limit 3"

    assert meaning("worker", flags).tables["fastchat"] == {
        "enabled": True,
        "controllers": ["http://c:1"],
        "advertise": "http://w:2",
    }
    assert worker(flags)["names"] == ["a", "b"]
    assert worker(flags)["concurrency"] == 3


def test_the_defaults_are_fastchats() -> None:
    assert meaning("controller").tables["server"] == {"host": "localhost", "port": 21001}
    assert meaning("controller").tables["controller"] == {"policy": "shortest_queue"}
    assert meaning("worker").tables["server"]["port"] == 21002
    assert meaning("worker").tables["fastchat"]["controllers"] == ["http://localhost:21001"]
    assert worker() == {"backend": "hf", "model": "lmsys/vicuna-7b-v1.5", "concurrency": 5}
    assert meaning("api").tables["server"]["port"] == 8000
    assert meaning("api").tables["fastchat"]["upstreams"] == ["http://localhost:21001"]


def test_b2_an_address_that_was_not_given_is_found_out() -> None:
    """FastChat registers http://localhost:21002 whatever the port."""
    assert "advertise" not in meaning("worker", "--port 31000").tables["fastchat"]


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--device cpu --dtype bfloat16 --revision v2", {"device": "cpu", "dtype": "bfloat16", "revision": "v2"}),
        ("--num-gpus 2", {"device_map": "auto"}),
        ("--num-gpus 1", {}),
        (
            "--num-gpus 2 --max-gpu-memory 20GiB",
            {"device_map": "auto", "max_memory": {"0": "20GiB", "1": "20GiB"}},
        ),
        ("--load-8bit", {"quantization": "bitsandbytes-8bit"}),
        ("--load-8bit --device cpu", {"quantization": "torchao-int8", "device": "cpu"}),
        ("--load-8bit --cpu-offloading", {"quantization": "bitsandbytes-8bit", "device_map": "auto"}),
        ("--enable-exllama --exllama-max-seq-len 512", {"gptq_kernel": "exllama_v2", "context_length": 512}),
        ("--enable-xft --xft-dtype bf16 --xft-max-seq-len 100", {"dtype": "bfloat16", "context_length": 100}),
        ("--backend vllm --num-gpus 2 --dtype float16", {"tensor_parallel_size": 2, "dtype": "float16"}),
        ("--backend sglang --num-gpus 2", {"tp_size": 2}),
    ],
)
def test_loader_flags_are_options_of_the_backend(flags: str, options: dict[str, Any]) -> None:
    meant = meaning("worker", flags)
    found = meant.tables["worker"][0]

    assert found.get("options", {}) == options
    if found["backend"] in backends():
        convert_options(config_from_tables(meant.tables, environ={}), 0, backends()[found["backend"]].options)


def test_a_quantised_checkpoint_takes_the_place_of_the_model() -> None:
    assert worker("--model-path base --gptq-ckpt quantised --gptq-wbits 4")["model"] == "quantised"
    assert worker("--model-path base --awq-ckpt quantised")["model"] == "quantised"


def test_cards_are_chosen_by_the_environment() -> None:
    assert meaning("worker", "--gpus 0,2 --num-gpus 2").environ["CUDA_VISIBLE_DEVICES"] == "0,2"
    with pytest.raises(StartupError, match="fewer"):
        meaning("worker", "--gpus 0 --num-gpus 2")


def test_several_models_are_several_workers() -> None:
    flags = "--model-path a --model-names x,y --model-path b --model-names z"

    assert [(each["model"], each["names"]) for each in meaning("worker", flags).tables["worker"]] == [
        ("a", ["x", "y"]),
        ("b", ["z"]),
    ]
    with pytest.raises(StartupError, match="--model-names"):
        meaning("worker", "--model-path a --model-names x --model-path b --model-path c --model-names z")


@pytest.mark.parametrize(
    "flag",
    ["--stream-interval 2", "--seed 1", "--embed-in-truncate", "--conv-template vicuna_v1.1", "--gptq-groupsize 128"],
)
def test_what_has_no_counterpart_is_said(flag: str) -> None:
    assert [note.partition(" ")[0] for note in meaning("worker", flag).notes] == [flag.partition(" ")[0]]


def test_variables_of_its_environment_are_taken() -> None:
    beats = {"FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "5"}
    assert meaning("worker", **beats).tables["fastchat"]["beat_s"] == 5
    lease = {"FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION": "20"}
    assert meaning("controller", **lease).tables["fastchat"]["lease_s"] == 20
    patience = {"FASTCHAT_WORKER_API_TIMEOUT": "300"}
    assert meaning("api", **patience).tables["fastchat"]["timeouts"] == {
        "first_token_s": 300,
        "between_tokens_s": 300,
    }
    assert meaning("worker", LOGDIR="/var/log").notes == ["LOGDIR is not used"]
    with pytest.raises(StartupError, match="no number"):
        meaning("worker", FASTCHAT_WORKER_HEART_BEAT_INTERVAL="soon")


def test_ssl_takes_its_files_from_the_environment() -> None:
    files = {"SSL_KEYFILE": "key.pem", "SSL_CERTFILE": "cert.pem"}
    server = meaning("controller", "--ssl", **files).tables["server"]

    assert (server["tls_key"], server["tls_certificate"]) == ("key.pem", "cert.pem")
    with pytest.raises(StartupError, match="SSL_KEYFILE"):
        meaning("controller", "--ssl")


def test_keys_and_origins_of_the_api_server_are_taken() -> None:
    meant = meaning("api", '--api-keys k1,k2 --allowed-origins ["https://a.example"] --allow-credentials')

    assert meant.tables["api"]["keys"] == ["k1", "k2"]
    assert meant.tables["server"]["cors_origins"] == ["https://a.example"]
    assert meant.notes == ["--allow-credentials has no counterpart"]


# ----------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def running(folder: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of ours, and what it printed until it served."""
    environ = {name: value for name, value in os.environ.items() if "HEART_BEAT" not in name}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastchat_serve", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=folder,
    )
    assert process.stderr is not None
    try:
        printed = ""
        for line in process.stderr:
            printed += line
            if "Serving" in line:
                break
        yield process, printed
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.stderr.close()


def test_controller_worker_and_api_find_each_other_by_fastchats_flags(tmp_path: Path, run: Callable[..., Any]) -> None:
    with running(tmp_path, "controller", "--port", "0") as (_, started):
        controller = url_of(started)
        flags = ("--port", "0", "--controller", controller, "--model-path", "tiny", "--backend", "echo")
        with (
            running(tmp_path, "worker", *flags),
            running(tmp_path, "api", "--port", "0", "--controller-address", controller, "--api-keys", "sk-secret") as (
                _,
                api,
            ),
        ):
            with httpx.Client(base_url=url_of(api), headers={"authorization": "Bearer sk-secret"}) as http:
                for _ in range(200):
                    models = http.get("/v1/models").json()["data"]
                    if models:
                        break
                    http.post("/refresh_all_workers")
                question = {"model": "tiny", "messages": [{"role": "user", "content": "Hello you"}]}
                answer = http.post("/v1/chat/completions", json=question).json()
            message = run(
                "message", "--controller-address", controller, "--model-name", "tiny", "--message", "Hi there"
            )

    assert [card["id"] for card in models] == ["tiny"]
    assert answer["choices"][0]["message"]["content"] == "Hello you"
    assert "sk-secret" not in api
    assert 'keys = ["${FASTCHAT_KEY}"]\n' in api
    assert "# In the environment: FASTCHAT_KEY=(the key)\n" in api
    assert re.search(r"^\[fastchat\]$", started, re.MULTILINE)
    assert message.stdout.splitlines() == [
        "Models: tiny",
        f"worker_addr: {controller}",
        "USER: Hi there",
        "ASSISTANT: Hi there",
    ]


def url_of(printed: str) -> str:
    found = re.search(r"Serving .*at (http://\S+)", printed)
    assert found is not None, printed
    return found[1].rstrip(".")


def test_what_is_printed_is_the_config_that_runs(tmp_path: Path) -> None:
    flags = ("--port", "0", "--no-register", "--model-path", "tiny", "--backend", "echo", "--seed", "1")
    with running(tmp_path, "worker", *flags, "--set", "worker.0.queue=3") as (_, printed):
        hint = printed.partition("[server]")[2].partition("\n# --seed")[0]
        config = tomllib.loads("[server]" + hint)

    assert config["worker"] == [{"backend": "echo", "model": "tiny", "concurrency": 5}]
    assert config["server"] == {"host": "localhost", "port": 0}
    assert "# --seed has no counterpart.\n" in printed
    assert "fastchat-serve docs fastchat-flags" in printed


def test_what_is_printed_of_keys_is_good_for_a_file_as_it_is(tmp_path: Path) -> None:
    flags = ("--port", "0", "--controller-address", "http://127.0.0.1:9", "--api-keys", "sk-one,sk-two")
    with running(tmp_path, "api", *flags) as (_, printed):
        written = "[server]" + printed.partition("[server]")[2].partition("\n# In the environment")[0]
    (tmp_path / "kept.toml").write_text(written)
    kept = load_config(tmp_path / "kept.toml", environ={"FASTCHAT_KEY": "sk-one", "FASTCHAT_KEY_2": "sk-two"})

    assert kept.api is not None
    assert [key.reveal() for key in kept.api.keys] == ["sk-one", "sk-two"]


def test_a_bad_value_is_refused_in_one_line(run: Callable[..., Any]) -> None:
    done = run("worker", "--host", "0.0.0.0", "--backend", "echo")

    assert done.returncode == 2
    assert "server.host" in done.stderr.splitlines()[-1]


def test_messages_over_openais_api_look_the_same(run: Callable[..., Any], url: str) -> None:
    done = run("message", "--url", url, "--model-name", "echo", "--message", "to be or not", "--max-new-tokens", "2")

    assert done.returncode == 0
    assert done.stdout.splitlines() == ["Models: echo, slow", "USER: to be or not", "ASSISTANT: to be"]


def test_a_model_that_nobody_serves_is_said_so(run: Callable[..., Any], url: str) -> None:
    done = run("message", "--url", url, "--model-name", "nope")

    assert done.returncode == 1
    assert "nope" in done.stderr
    assert done.stdout.endswith("ASSISTANT: \n"), "in a terminal the error stands on a line of its own"


def test_the_structure_of_meanings_is_plain_data() -> None:
    """It is written as TOML and decoded as a config."""
    assert msgspec.to_builtins(meaning("worker", "--num-gpus 2 --max-gpu-memory 1GiB").tables)


@pytest.mark.parametrize("flag", ["--controller-address", "--worker-address"])
def test_a_server_without_fastchats_routes_is_told_how_to_have_them(
    run: Callable[..., Any], url: str, flag: str
) -> None:
    done = run("message", flag, url, "--model-name", "echo")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[fastchat] enabled = true" in done.stderr
    assert "--url" in done.stderr
    assert done.stderr.count("\n") == 1
