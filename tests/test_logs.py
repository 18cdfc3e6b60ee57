"""Log lines are written by a thread: whatever the file does, who logs never waits (F19)."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from io import FileIO
from pathlib import Path

import pytest

from fastchat_serve import logs
from fastchat_serve.logs import LogWriter, logging_to

PATIENCE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """(reading end, writing end)"""
    reading, writing = (FileIO(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    with reading, writing:
        yield reading, writing


def say(writer: LogWriter, *lines: str) -> None:
    for line in lines:
        writer.emit(logging.LogRecord("test", logging.INFO, __file__, 1, line, None, None))


def until(condition: Callable[[], bool]) -> None:
    """The writer's thread sets no event that a test could wait for."""
    looked = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        looked.wait(0.005)
    raise AssertionError("it took too long")


def test_lines_are_written_in_order_and_all_of_them_before_it_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, closing(LogWriter(file.fileno())) as writer:
        say(writer, *map(str, range(1000)))

    assert (tmp_path / "log").read_text().split() == [str(number) for number in range(1000)]
    assert writer.lost == 0


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    with Path("/dev/full").open("wb") as full, closing(LogWriter(full.fileno())) as writer:
        say(writer, *("x" * 100 for _ in range(100)))
        until(lambda: writer.lost >= 100)


def test_a_reader_that_has_gone_loses_lines_and_nothing_else(pipe: tuple[FileIO, FileIO]) -> None:
    reading, writing = pipe
    reading.close()
    with closing(LogWriter(writing.fileno())) as writer:
        say(writer, "a", "b")
        until(lambda: writer.lost >= 2)


def test_nobody_waits_for_a_pipe_that_nobody_empties(
    pipe: tuple[FileIO, FileIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LAST_LINES_S", 0.01)
    reading, writing = pipe
    with closing(LogWriter(writing.fileno())) as writer:
        say(writer, *("x" * 1000 for _ in range(2 * logs.CAPACITY)))

        assert writer.lost >= logs.CAPACITY - 100, "the pipe holds some, the queue its capacity"
        assert len(writer._lines) <= logs.CAPACITY
    reading.close()  # the thread's write fails, and it ends
    writer._thread.join(PATIENCE_S)
    assert not writer._thread.is_alive()


def test_that_lines_were_lost_is_said_once_a_minute_when_it_can_be(pipe: tuple[FileIO, FileIO]) -> None:
    reading, writing = pipe
    clock = Clock()
    with Path("/dev/full").open("wb") as full, closing(LogWriter(full.fileno(), clock)) as writer:
        say(writer, "a", "b", "c")
        until(lambda: writer.lost >= 4)  # the three, and the line that would have said so
        lost = writer.lost
        os.dup2(writing.fileno(), full.fileno())  # there is room again

        say(writer, "d")
        assert reading.read(1000) == b"d\n", "it has been tried within this minute"
        clock.now += logs.TELL_EVERY_S
        say(writer, "e")
        until(lambda: writer._told == lost)
        say(writer, "f")

    writing.close()
    lines = reading.readall().decode().splitlines()
    lines.remove(f"{lost} log lines were lost: they could not be written, or not fast enough.")
    assert lines == ["e", "f"]


def test_a_message_that_does_not_fit_its_arguments_is_still_a_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, closing(LogWriter(file.fileno())) as writer:
        writer.emit(logging.LogRecord("test", logging.INFO, __file__, 1, "%d of %d", ("x",), None))
        say(writer, "\udcff")

    assert (tmp_path / "log").read_text() == "test: a message could not be formatted: '%d of %d'\n\\udcff\n"


def test_everything_that_is_logged_goes_there_and_afterwards_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with (tmp_path / "log").open("wb") as file:
        with logging_to(file.fileno(), "info"):
            logging.getLogger("a.b").info("said %s", "once")
            logging.getLogger("a.b").debug("not said")
        logging.getLogger("a.b").error("too late")

    assert (tmp_path / "log").read_text().endswith("INFO    a.b: said once\n")
    assert (tmp_path / "log").read_text().count("\n") == 1
    assert root.handlers == []


def test_lines_of_one_of_several_processes_begin_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    with (tmp_path / "log").open("wb") as file, logging_to(file.fileno(), "info", process=1):
        logging.getLogger("a.b").info("said")

    assert (tmp_path / "log").read_text().startswith("[1] 2")
