"""Every broken config is refused, with file, line, column and key.

The corpus is in ``tests/broken_configs``: ▸ marks the place that the error must name, and is taken
out before the text is read.
"""

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from jsonschema import Draft202012Validator

from fastchat_serve.configfile.load import load_config
from fastchat_serve.configfile.schema import config_json_schema
from fastchat_serve.errors import ConfigError

CORPUS = Path(__file__).parent.parent / "broken_configs"


class Broken(NamedTuple):
    title: str
    key: str
    says: str
    marked: str

    @property
    def toml(self) -> str:
        return self.marked.replace("▸", "")

    @property
    def place(self) -> tuple[int, int]:
        lines_before = self.marked.partition("▸")[0].split("\n")
        return len(lines_before), len(lines_before[-1]) + 1


def read_corpus() -> Iterator[Broken]:
    for file in sorted(CORPUS.glob("*.txt")):
        for entry in file.read_text(encoding="utf-8").split("\n== ")[1:]:
            head, marked = entry.split("\n--\n", 1)
            title, expected = head.split("\n", 1)
            key, says = expected.split(": ", 1)
            yield Broken(f"{file.stem}: {title}", key, says, marked.rstrip("\n"))


BROKEN = tuple(read_corpus())
WRONG_IN_SHAPE = tuple(
    broken
    for broken in BROKEN
    if broken.title.startswith(("types: ", "ranges: ", "unknown_keys: "))
    and not broken.marked.endswith("▸nan")  # to Python, and so to jsonschema, nan is in any range
)
SCHEMA = Draft202012Validator(config_json_schema())


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    return caught.value


def test_the_corpus_has_at_least_200_different_broken_configs() -> None:
    assert len({broken.toml for broken in BROKEN}) >= 200
    assert len({broken.title for broken in BROKEN}) == len(BROKEN)
    assert all(broken.marked.count("▸") == 1 for broken in BROKEN)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.title)
def test_a_broken_config_is_refused_with_file_line_column_and_key(broken: Broken, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(broken.toml, encoding="utf-8")

    error = refusal(path)

    assert (error.file, error.line, error.column, error.key) == (str(path), *broken.place, broken.key)
    assert broken.says in error.problem
    assert str(error).startswith(f"{path}:{error.line}:{error.column}: {error.key}: ")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.title)
def test_windows_line_ends_and_a_byte_order_mark_move_no_place(broken: Broken, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(b"\xef\xbb\xbf" + broken.toml.replace("\n", "\r\n").encode())

    error = refusal(path)

    assert (error.line, error.column, error.key) == (*broken.place, broken.key)


@pytest.mark.parametrize("broken", WRONG_IN_SHAPE, ids=lambda broken: broken.title)
def test_what_is_wrong_in_shape_the_json_schema_refuses_too(broken: Broken) -> None:
    assert not SCHEMA.is_valid(tomllib.loads(broken.toml))


def test_all_problems_of_a_file_are_told_in_the_order_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('[server]\nprot = 1\nport = -1\n[[worker]]\nnames = ["a", 1]\n[contoller]\n', encoding="utf-8")

    error = refusal(path)

    assert str(error).startswith(f"{path}:2:1: server.prot: ")
    assert [note.split(": ")[:2] for note in error.__notes__] == [
        [f"{path}:3:8", "server.port"],
        [f"{path}:4:1", "worker.0.backend"],
        [f"{path}:5:15", "worker.0.names.1"],
        [f"{path}:6:2", "contoller"],
    ]


def test_bytes_that_are_not_utf8_are_refused_at_their_place(tmp_path: Path) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes('[server]\r\nhost = "日'.encode() + 'ö"\n'.encode("latin-1"))

    error = refusal(path)

    assert (error.line, error.column, error.key) == (2, 10, "server.host")
    assert "not UTF-8: byte 0xf6" in error.problem


@pytest.mark.parametrize("mark", ["\x00", "\x01", "\x7f"])
def test_control_characters_are_refused_at_their_place(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "control.toml"
    path.write_text(f'[server]\nhost = "a{mark}b"\n', encoding="utf-8")

    error = refusal(path)

    assert (error.line, error.column, error.key) == (2, 10, "server.host")


def test_a_text_that_has_no_key_at_all_is_refused_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"server": {"port": 8000}}', encoding="utf-8")

    error = refusal(path)

    assert (error.line, error.column, error.key) == (1, 1, None)


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000], ids=["decimal", "hexadecimal"])
def test_an_integer_of_thousands_of_digits_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    path.write_text(f"[server]\nport = {value}\n", encoding="utf-8")

    error = refusal(path)

    assert (error.line, error.key) == (2, "server.port")


@pytest.mark.parametrize("opening", ["[", "{a="], ids=["lists", "tables"])
def test_absurd_nesting_is_refused(opening: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(f"x = {opening * 100_000}", encoding="utf-8")

    error = refusal(path)

    assert "nested too deeply" in error.problem


@pytest.mark.parametrize("line", ["[{}]", "{} = 1", "[[{}]]"], ids=["table", "key", "list of tables"])
def test_a_dotted_key_without_end_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "dots.toml"
    path.write_text(line.format(".".join(["a"] * 3000)), encoding="utf-8")

    error = refusal(path)

    assert "nested too deeply" in error.problem


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent.toml")

    assert error.file == str(tmp_path / "absent.toml")
    assert "No such file" in error.problem


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    assert "this is a folder" in refusal(tmp_path).problem


def test_a_path_that_no_file_can_have_is_refused() -> None:
    assert "cannot read this file" in refusal(Path("a\0b")).problem


def test_a_broken_line_in_the_keys_file_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("good-key\n# comment\n  two marker words\n", encoding="utf-8")
    path = tmp_path / "config.toml"
    shutil.copy(Path(__file__).parent.parent.parent / "conf" / "echo.toml", path)
    path.write_text(
        path.read_text(encoding="utf-8").replace("[api]", '[api]\nkeys_file = "keys.txt"'), encoding="utf-8"
    )

    error = refusal(path)

    assert (error.file, error.line, error.column) == (str(tmp_path / "keys.txt"), 3, 3)
    assert "marker" not in str(error)
