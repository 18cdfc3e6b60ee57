"""``fastchat-serve chat`` as part of a pipe: messages a line each from stdin, answers on stdout."""

from __future__ import annotations

import json

import pytest

EVENT = 'data: {"choices": [{"delta": {"content": "Once"}, "finish_reason": null}]}\n\n'
FAILURE = 'data: {"error": {"message": "The engine failed.", "type": "engine_error", "param": null, "code": null}}\n\n'


@pytest.fixture
def model_here(tmp_path):
    """Arguments for a model in the process of the command."""
    config = tmp_path / "config.toml"
    config.write_text('[controller]\n[api]\n[[worker]]\nbackend = "echo"\nnames = ["one", "two"]\n')
    return "--config", str(config)


def test_prints_only_the_answers_as_they_are(run, url):
    done = run("chat", "--url", url, "--model", "echo", stdin="**to be** or not\n\n  /not a command\n\x1b[1m\n")
    assert done.stdout == "**to be** or not\n/not a command\n\x1b[1m\n"
    assert done.stderr == ""
    assert done.returncode == 0


def test_takes_the_first_model_of_the_server_when_none_is_named(run, url, tmp_path):
    run("chat", "--url", f"{url}/v1/", stdin=f"hello\n/save {tmp_path}/talk.json\n")
    assert json.loads((tmp_path / "talk.json").read_text())["model"] == "echo"


def test_a_model_in_this_process_answers_alike(run, model_here):
    done = run("chat", *model_here, stdin="to be\nor not")
    assert (done.returncode, done.stdout) == (0, "to be\nor not\n")


def test_a_model_on_demand_is_loaded_for_the_chat_and_again_after_it_was_unloaded(run, tmp_path):
    config = tmp_path / "lazy.toml"
    table = 'backend = "echo"\nload = "first_request"\nidle_unload_s = 0.001\n'
    config.write_text(f"[controller]\n[api]\n[[worker]]\n{table}")
    done = run("chat", "--config", str(config), stdin="Hello!\nAnd again.\n")
    assert (done.returncode, done.stdout) == (0, "Hello!\nAnd again.\n"), done.stderr


def test_with_a_config_model_picks_one_of_its_names(run, model_here, tmp_path):
    done = run("chat", *model_here, "--model", "two", stdin=f"x\n/save {tmp_path}/talk\n")
    assert done.returncode == 0
    assert json.loads((tmp_path / "talk.json").read_text())["model"] == "two"
    refused = run("chat", *model_here, "--model", "three")
    assert refused.returncode == 2
    assert "has no model 'three', only one, two" in refused.stderr


def test_commands_of_fastchat_work_with_exclamation_marks(run, model_here, tmp_path):
    script = f"one\n!!regen\ntwo\n!!remove\n!!save {tmp_path}/talk\n!!exit\nnever\n"
    done = run("chat", *model_here, stdin=script)
    assert (done.returncode, done.stdout) == (0, "one\none\ntwo\n")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert messages == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "one"}]


def test_the_system_message_can_be_given_changed_and_dropped(run, model_here, tmp_path):
    script = f"/save {tmp_path}/a\n/system Be loud.\n/reset\n/save {tmp_path}/b\n/system\n/save {tmp_path}/c\n"
    assert run("chat", *model_here, "--system", "Be brief.", stdin=script).returncode == 0
    systems = [json.loads((tmp_path / f"{name}.json").read_text())["messages"] for name in "abc"]
    assert systems == [
        [{"role": "system", "content": "Be brief."}],
        [{"role": "system", "content": "Be loud."}],
        [],
    ]


def test_the_first_failure_ends_it(run, model_here):
    done = run("chat", *model_here, stdin="one\n/load nowhere\ntwo\n")
    assert (done.returncode, done.stdout) == (1, "one\n")
    assert done.stderr == "fastchat-serve: Cannot read nowhere.json: No such file or directory.\n"


def test_an_answer_that_is_cut_off_says_so(run, model_here):
    done = run("chat", *model_here, "--max-tokens", "2", stdin="to be or not\n")
    assert done.stdout == "to be\n"
    assert done.stderr.startswith("Cut off")


@pytest.mark.parametrize("end", ["data: [DONE]\n\n", 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'])
def test_either_mark_of_the_end_is_enough(run, foreign_server, end):
    address = foreign_server(200, "text/event-stream", EVENT + end)
    assert run("chat", "--url", address, "--model", "any", stdin="tell\n") == (0, "Once\n", "")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (EVENT, "The server ended the stream before the answer was complete."),
        (EVENT + FAILURE, "The engine failed."),
        (EVENT + "data: nonsense\n\n", "The server sent an event that belongs to no chat"),
    ],
)
def test_a_stream_that_fails_in_the_middle_is_never_taken_for_an_answer(run, foreign_server, body, complaint):
    address = foreign_server(200, "text/event-stream", body)
    done = run("chat", "--url", address, "--model", "any", stdin="tell\n")
    assert (done.returncode, done.stdout) == (1, "Once\n")
    assert done.stderr.startswith(f"fastchat-serve: {complaint}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--url", "http://127.0.0.1:1", "--config", "x.toml"), "--url is about a running server"),
        (("--url", "127.0.0.1:1"), "--url: an address has the form http://host:port"),
        (("--url", "http://127.0.0.1:99999"), "--url: a port is at most 65535"),
        (("--set", "worker.0.queue=1"), "--set needs --config or --model"),
        (("--temperature", "3"), "3 is not between 0 and 2"),
        (("--max-tokens", "0"), "0 is not at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(run, arguments, complaint):
    done = run("chat", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
