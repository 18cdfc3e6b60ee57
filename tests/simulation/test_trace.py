"""Traces of three kinds, and what is wrong with others, by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastchat_serve.errors import ConfigError
from fastchat_serve.simulation.trace import BLOCK_TOKENS, Arrival, read_trace

OURS = '{"at_s": 0.5, "prompt_tokens": 10, "output_tokens": 3}\n'


def read(tmp_path: Path, text: str) -> list[Arrival]:
    (tmp_path / "trace").write_text(text)
    return list(read_trace(tmp_path / "trace", "m"))


def test_our_own_lines_name_what_prompts_have_in_common(tmp_path: Path) -> None:
    more = '"prefix": "system", "prefix_tokens": 300, "session": "s", "model": "large"'
    line = f'{{"at_s": 1, "prompt_tokens": 900, "output_tokens": 3, {more}}}\n'
    first, second, third = read(tmp_path, OURS + "\n" + line + line)
    assert first == Arrival(0.5, "m", 10, 3)
    assert (second.model, second.session) == ("large", "s")
    assert len(second.blocks) == 300 // BLOCK_TOKENS
    assert third == second


def test_mooncakes_lines_have_blocks_of_512_tokens(tmp_path: Path) -> None:
    (arrival,) = read(
        tmp_path, '{"timestamp": 1500, "input_length": 1100, "output_length": 0, "hash_ids": [4, 5, 6], "more": 1}\n'
    )
    assert arrival == Arrival(1.5, "m", 1100, 1, "", (4, 5), 512)


def test_azures_rows_count_from_the_first(tmp_path: Path) -> None:
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:17:{second},{tokens},7\n" for second, tokens in (("03.9799600", 100), ("05.4799601", 200))
    )
    assert read(tmp_path, rows) == [Arrival(0.0, "m", 100, 7), Arrival(1.5, "m", 200, 7)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (OURS + '{"at_s": 0.2, "prompt_tokens": 1, "output_tokens": 1}\n', r"trace:2: .*before the one above"),
        (OURS + '{"at_s": 0.6, "prompt_tokens": 1}\n', r"trace:2: .*output_tokens"),
        (OURS + '{"at_s": 0.6, "prompt_tokens": 1, "output_tokens": 1, "x": 1}\n', r"trace:2: .*unknown field `x`"),
        (OURS + "nonsense\n", r"trace:2: .*malformed"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,many,1\n", r"trace:2: .*not a row"),
        ("", r"trace: there is no request in this trace"),
        ("\n\n", r"trace: there is no request in this trace"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", r"trace: there is no request in this trace"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,1\n", r"trace:2: .*not a row"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read this trace: No such file"):
        list(read_trace(tmp_path / "none", "m"))
