"""Model folders: found, told apart, and wrong ones refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastchat_serve import SamplingParams, StartupError
from fastchat_serve.checkpoint import advised_sampling, find_folder, fingerprint, read_json, weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, as far as one can tell from outside."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
    return made


def test_a_folder_is_itself(folder: Path) -> None:
    assert find_folder(str(folder)) == folder


@pytest.mark.parametrize("model", ["/no/such/folder", "three/parts/here", "blank space"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_anybody(model: str) -> None:
    with pytest.raises(StartupError, match="no such model folder"):
        find_folder(model)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no config\.json"):
        find_folder(str(tmp_path))


def test_equal_files_make_equal_fingerprints_and_any_other_byte_another(folder: Path) -> None:
    before = fingerprint([folder], "float32")

    assert fingerprint([folder], "float32") == before
    assert fingerprint([folder], "bfloat16") != before
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + b"!")
        assert fingerprint([folder], "float32") != before, name
        (folder / name).write_bytes(whole)
    assert fingerprint([folder], "float32") == before


def test_pickles_count_only_where_there_are_no_safetensors(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")

    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    assert [path.name for path in weight_files(folder)] == ["pytorch_model.bin"]


def test_advice_is_what_the_generation_config_states(folder: Path) -> None:
    assert advised_sampling(folder) == SamplingParams()
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "top_p": None}))

    assert advised_sampling(folder) == SamplingParams(temperature=0.6, top_k=20)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_file_is_an_error_that_names_it(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)

    with pytest.raises(StartupError, match=r"generation_config\.json"):
        read_json(folder / "generation_config.json")
