"""Where the demo tells what it does: plain lines, and on a terminal colours and one moving line.

Every line is written when its event happens. In a pipe there is nothing but lines: no cursor
movement, no colours, no line broken at 80 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation: in which step, what was expected, whether it held, and what was seen."""

    step: str
    expected: str
    held: bool
    seen: str


class Screen:
    """Writes to ``file``; keeps every expectation that it was told."""

    def __init__(self, file: TextIO) -> None:
        # Soft wrap leaves long lines alone: what an engine said is not broken into pieces.
        self._console = Console(file=file, highlight=False, soft_wrap=True)
        # Not the console's own notion: FORCE_COLOR makes that one call a pipe a terminal.
        self._moving = file.isatty() and not self._console.is_dumb_terminal
        self._step = ""
        self._steps = 0
        self.checks: list[Check] = []

    def step(self, title: str) -> None:
        """Begin a step of the demo."""
        self._steps += 1
        self._step = title
        self.heading(f"{self._steps}. {title}")

    def heading(self, text: str) -> None:
        """Write a line that stands out."""
        self._write(Text(f"\n{text}", style="bold"))

    def say(self, text: str, *, style: str = "") -> None:
        """Tell one thing."""
        self._write(Text(f"   {text}", style=style))

    def expect(self, expected: str, seen: str, *, held: bool, words: str = "") -> None:
        """Tell what was expected, whether it held, and what was seen.

        ``words`` are another program's own, and get a line to themselves.
        """
        said = f"{seen}: {words}" if words else seen
        self.checks.append(Check(self._step, expected, held, said))
        mark = ("   ok  ", "green") if held else ("   NOT ", "bold red")
        self._write(Text.assemble(mark, f"{expected}: {seen}"))
        if words:
            self._write(Text(f"       {words}", style="dim" if held else "red"))

    @contextmanager
    def doing(self, what: str) -> Iterator[Callable[[str], None]]:
        """While inside, show on a terminal that something goes on; yield what changes the text."""
        if not self._moving:
            yield lambda _text: None
            return
        with self._console.status(Text(what), spinner="line") as status:
            yield lambda text: status.update(Text(text))

    def _write(self, text: Text) -> None:
        self._console.print(text)
        self._console.file.flush()
