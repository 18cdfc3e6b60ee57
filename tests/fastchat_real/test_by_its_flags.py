"""Our processes started by FastChat's flags, each in the place of one of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.fastchat_real.processes import (
    PATIENCE_S,
    api_server,
    controller,
    model_worker,
    output_of,
    wait_until,
)

pytestmark = pytest.mark.timeout(300)


@contextlib.contextmanager
def ours(folder: Path, role: str, *flags: str) -> Iterator[str]:
    """``fastchat-serve ROLE``: its URL once it serves."""
    command = [sys.executable, "-m", "fastchat_serve", role, "--port", "0", *flags]
    beats = os.environ | {"FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=beats)
    assert process.stderr is not None
    try:
        served = (re.search(r"Serving .*at (http://\S+)", line) for line in process.stderr)
        yield next(found[1] for found in served if found is not None)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stderr.close()


def models_of(url: str) -> list[str]:
    """Listed by a controller."""
    models: list[str] = httpx.post(f"{url}/list_models", timeout=20).json()["models"]
    return models


def answer_of(url: str, model: str) -> str:
    """By OpenAI's API."""
    hello: Any = [{"role": "user", "content": "Hello you"}]
    with OpenAI(base_url=f"{url}/v1", api_key="sk-secret", max_retries=0, timeout=60) as client:
        said = client.chat.completions.create(model=model, messages=hello, temperature=0, max_tokens=9)
    return said.choices[0].message.content or ""


def test_our_controller_between_its_worker_and_its_api_server(tmp_path: Path) -> None:
    with ours(tmp_path, "controller") as url, model_worker(tmp_path, url), api_server(tmp_path, url) as api:
        wait_until(lambda: models_of(url) == ["tiny"])
        assert answer_of(api, "tiny")
        asked = ("--controller-address", url, "--model-name", "tiny", "--max-new-tokens", "8")
        theirs = output_of(tmp_path, "test_message", *asked)
    assert theirs.splitlines()[0] == "Models: ['tiny']"


def test_our_worker_at_its_controller_behind_its_api_server(tmp_path: Path) -> None:
    with controller(tmp_path) as url, api_server(tmp_path, url) as api:
        flags = ("--controller", url, "--model-path", "any", "--model-name", "vicuna-echo", "--backend", "echo")
        with ours(tmp_path, "worker", *flags):
            wait_until(lambda: models_of(url) == ["vicuna-echo"])
            assert answer_of(api, "vicuna-echo") == "Hello you"
            asked = ["--controller-address", url, "--model-name", "vicuna-echo", "--message", "Hello you"]
            message = subprocess.run(
                [sys.executable, "-m", "fastchat_serve", "message", *asked],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=True,
            )
    assert message.stdout.splitlines()[-1] == "ASSISTANT: Hello you"


def test_our_api_at_its_controller_with_its_worker(tmp_path: Path) -> None:
    keyed = {"authorization": "Bearer sk-secret"}
    with (
        controller(tmp_path) as url,
        model_worker(tmp_path, url),
        ours(tmp_path, "api", "--controller", url, "--api-keys", "sk-secret") as api,
        httpx.Client(base_url=api, headers=keyed, timeout=20) as http,
    ):
        wait_until(lambda: [card["id"] for card in http.get("/v1/models").json()["data"]] == ["tiny"])
        assert answer_of(api, "tiny")
        assert httpx.get(f"{api}/v1/models").status_code == 401
