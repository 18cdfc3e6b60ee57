"""Where a model is asked for, and which token goes there; FastChat's file of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hf_asking import Opened

from fastchat_backend_hf_inference import CAPABILITIES, HfInferenceOptions
from fastchat_backend_hf_inference.place import find_place
from fastchat_serve import Capability, Secret, StartupError

pytestmark = pytest.mark.anyio


def place(model: str = "org/model", **options: Any) -> Any:
    return find_place(model, HfInferenceOptions(**options))


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a token of Hugging Face."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_login")


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize(
    ("base_url", "token"),
    [
        (None, "hf_login"),
        ("https://abc.eu-west-1.aws.endpoints.huggingface.cloud/v1", "hf_login"),
        ("http://abc.endpoints.huggingface.cloud/v1", ""),
        ("https://models.example/v1", ""),
        ("https://huggingface.co.example/v1", ""),
    ],
)
def test_the_login_of_this_machine_goes_to_hugging_face_only(base_url: str | None, token: str) -> None:
    assert place(base_url=base_url).token == token


def test_a_token_that_was_given_goes_where_it_was_given_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "t-1")

    assert place(base_url="https://models.example/v1", token=Secret("t-0")).token == "t-0"
    assert place(base_url="https://models.example/v1", token_env="MINE").token == "t-1"
    with pytest.raises(StartupError, match="OTHER"):
        place(token_env="OTHER")


def test_a_provider_needs_a_token() -> None:
    with pytest.raises(StartupError, match="HF_TOKEN"):
        place()


def test_a_place_does_not_show_its_token() -> None:
    assert "hf_x" not in repr(place(token=Secret("hf_x")))


def test_tasks_beside_chat_are_asked_of_hugging_face_itself() -> None:
    found = place(token=Secret("hf_x"), tasks=("feature-extraction",))

    assert found.base_url == "https://router.huggingface.co/hf-inference/models/org/model"
    with pytest.raises(StartupError, match="chats only"):
        place(token=Secret("hf_x"), tasks=("feature-extraction",), provider="together")


@pytest.fixture
def model_info(tmp_path: Path) -> Path:
    """A file as FastChat's documentation shows it."""
    file = tmp_path / "info.json"
    entries = {
        "falcon-180b-chat": {
            "model_name": "falcon-180B-chat",
            "model_names": ["falcon"],
            "model_path": "tiiuae/falcon-180B-chat",
            "api_base": "https://api-inference.huggingface.co/models",
            "token": "hf_falcon",
            "context_length": 2048,
        },
        "mine": {
            "model_path": "",
            "api_base": "https://mine.endpoints.example/",
            "token": "hf_mine",
            "context_length": 4096,
            "conv_template": "zephyr",
        },
        "below": {"model_path": "a/b", "api_base": "https://gateway.example/models", "token": ""},
    }
    file.write_text(json.dumps(entries))
    return file


def test_fastchats_file_is_understood(model_info: Path) -> None:
    falcon, mine, below = (place(name, model_info=model_info) for name in ("falcon-180b-chat", "mine", "below"))

    assert (falcon.model, falcon.base_url, falcon.token) == ("tiiuae/falcon-180B-chat", None, "hf_falcon")
    assert (mine.base_url, mine.token, mine.context_length) == ("https://mine.endpoints.example", "hf_mine", 4096)
    assert (below.base_url, below.token) == ("https://gateway.example/models/a/b", "")


def test_what_is_wrong_with_a_file_is_said(model_info: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no entry 'other'\. It has: below, falcon-180b-chat, mine"):
        place("other", model_info=model_info)
    with pytest.raises(StartupError, match="cannot be read"):
        place(model_info=tmp_path / "none.json")
    model_info.write_text("[]")
    with pytest.raises(StartupError, match="FastChat's form"):
        place(model_info=model_info)
    with pytest.raises(ValueError, match="one of token"):
        HfInferenceOptions(token=Secret("a"), token_env="B")


async def test_the_context_length_is_the_files(opened: Opened, model_info: Path) -> None:
    async with opened("mine", model_info=model_info) as engine:
        assert engine.info.context_length == 4096
    async with opened("mine", model_info=model_info, context_length=8) as engine:
        assert engine.info.context_length == 8


async def test_offline_mode_is_said(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StartupError, match="HF_HUB_OFFLINE"):
        async with opened(base_url="http://127.0.0.1:9"):
            pass


async def test_a_missing_library_is_said(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat_backend_hf_inference.place.is_numpy_available", lambda: False)
    with pytest.raises(StartupError, match="pip install"):
        async with opened(base_url="http://127.0.0.1:9", tasks=("feature-extraction",)):
            pass


async def test_what_the_backend_promises_is_what_its_engines_can_do_together(opened: Opened) -> None:
    found: set[Capability] = set()
    for server in ("openai", "tgi"):
        for task in ("chat", "text-generation", "feature-extraction"):
            async with opened(base_url="http://127.0.0.1:9/v1", server=server, tasks=(task,)) as engine:
                found |= engine.info.capabilities
    async with opened(token=Secret("hf_x")) as engine:
        found |= engine.info.capabilities

    assert found == CAPABILITIES
