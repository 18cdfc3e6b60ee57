"""What a chat shows: answers on stdout, everything else on stderr.

In a terminal answers are rendered as the Markdown they are, while they come. Elsewhere they are written
as they are, so that a chat can be part of a pipe.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from fastchat_serve.commands.chat.conversation import Exchange

__all__ = ["Screen"]

REDRAWS_PER_S = 10

_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


class Screen:
    """Attributes: `interactive`, whether a person reads and types here; then prompts and hints make sense."""

    def __init__(self) -> None:
        self._answers, self._notes = Console(highlight=False), Console(stderr=True, highlight=False)
        self._rendered = self._answers.is_terminal and not self._answers.is_dumb_terminal
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.styled = self._rendered and self._answers.color_system is not None

    def note(self, text: str) -> None:
        """Say something aside."""
        self._notes.print(Text(_printable(text), style="dim"), soft_wrap=True)

    def hint(self, text: str) -> None:
        """Say something that only helps a person."""
        if self.interactive:
            self.note(text)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        line = _printable(text if self.interactive else f"fastchat-serve: {text}")
        self._notes.print(Text(line, style="red"), soft_wrap=True)

    def exchange(self, exchange: Exchange) -> None:
        """Show a person again what was said."""
        if self.interactive:
            self._answers.print(Text(f"> {_printable(exchange.question)}", style="bold"))
            with self.answer() as show:
                show(exchange.answer)
            if exchange.stopped:
                self.note("Stopped.")

    @contextmanager
    def answer(self) -> Iterator[Callable[[str], None]]:
        """Show an answer whose pieces are handed to the function this gives."""
        if self._rendered:
            with _typing_unseen(), _MarkdownAnswer(self._answers) as view:
                yield view.add
            self._answers.print()
        else:
            with _PlainAnswer() as plain:
                yield plain.add


@contextmanager
def _typing_unseen() -> Iterator[None]:
    """Have the terminal show nothing that is typed, ``^C`` included: it would end up within the answer.

    What is typed meanwhile is not lost; the next prompt has it.
    """
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    unseen = list(before)
    unseen[3] &= ~termios.ECHO
    unseen[3] |= termios.NOFLSH  # else Ctrl-C would throw away output that is on its way
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, unseen)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _PlainAnswer:
    """Writes pieces as they are, and ends the line if there were any."""

    def __init__(self) -> None:
        self._began = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._began:
            self.add("\n")

    def add(self, text: str) -> None:
        self._began = True
        sys.stdout.write(text)
        sys.stdout.flush()


class _MarkdownAnswer:
    """Prints each block of an answer for good once it is complete; only the last is redrawn as it grows.

    So nothing that scrolled away has to change, and the work per piece stays bounded by one block.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._growing = ""
        self._began = False
        self._live = Live(
            Spinner("dots"),
            console=console,
            refresh_per_second=REDRAWS_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.update("")
        self._live.stop()
        if self._growing.strip():
            self._print(self._growing)

    def add(self, text: str) -> None:
        """Show more of the answer."""
        self._growing += _printable(text)
        if "\n" in text:
            complete, self._growing = _split_last_block(self._growing)
            if complete:
                self._print(complete)
        if self._growing:
            self._live.update(_Block(self._growing, gap=self._began, max_lines=self._console.height - 1))

    def _print(self, markdown: str) -> None:
        self._console.print(_Block(markdown, gap=self._began), end="")
        self._began = True


class _Block:
    """Some Markdown without blank lines around it. It is parsed when it is drawn: not every piece is.

    Args:
        gap: Put one blank line before it.
        max_lines: Show no more than this many, the last.
    """

    def __init__(self, markdown: str, *, gap: bool, max_lines: int | None = None) -> None:
        self._markdown, self._gap, self._max_lines = markdown, gap, max_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(_markdown(self._markdown), options, pad=False)
        while lines and _is_blank(lines[0]):
            del lines[0]
        while lines and _is_blank(lines[-1]):
            del lines[-1]
        if self._gap:
            lines.insert(0, [])
        for line in lines if self._max_lines is None else lines[-max(self._max_lines, 1) :]:
            yield from line
            yield Segment.line()


def _is_blank(line: Sequence[Segment]) -> bool:
    """Nothing to see; the coloured edge of a code block is something."""
    return not any(part.text.strip() or (part.style and part.style.bgcolor) for part in line)


def _split_last_block(text: str) -> tuple[str, str]:
    """All blocks of Markdown but the last, which may still grow, and the last."""
    starts = [token.map[0] for token in Markdown(text).parsed if token.level == 0 and token.map]
    if len(starts) < 2:
        return "", text
    lines = text.split("\n")
    return "\n".join(lines[: starts[-1]]), "\n".join(lines[starts[-1] :])


def _markdown(text: str) -> Markdown:
    """`text` as Markdown in which nothing gets lost: line ends count, HTML is text, links show where they lead."""
    markdown = Markdown(text, hyperlinks=False)
    for token in markdown.parsed:
        if token.type == "html_block":
            token.type = "code_block"
        for child in token.children or ():
            child.type = {"softbreak": "hardbreak", "html_inline": "text"}.get(child.type, child.type)
    return markdown


def _printable(text: str) -> str:
    """Without control characters: a model must not drive the terminal."""
    return text.translate(_CONTROLS)
