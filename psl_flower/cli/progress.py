"""The display of progress: a bar with rate and time left on a terminal; elsewhere a line now and then, or none."""

from __future__ import annotations

import math
import sys
import time
from typing import Self, TextIO

from psl_flower.text import duration, printable

_BAR = 8
# What stands beside the bar's text: bar, share, time since its begin, and the spaces between them.
_BESIDE = _BAR + 1 + len("100%") + 1 + len("0:00:00") + 1


class Progress:
    """One bar on a terminal, lines elsewhere; use as a context manager.

    Parameters
    ----------
    stream : TextIO, optional
        Where to show it; standard error if None.
    every_s : float
        Seconds between two lines where `stream` is no terminal; infinity: none, but for those of `say`.
    enabled : bool
        False shows no progress anywhere; what `say` is given is still printed.
    """

    def __init__(self, stream: TextIO | None = None, *, every_s: float = math.inf, enabled: bool = True) -> None:
        from rich import progress  # `psl --help` does without
        from rich.console import Console
        from rich.table import Column

        # What is shown comes from users and logs: brackets and colons in it are no markup.
        file = stream or sys.stderr
        self._console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._on_terminal, self._enabled, self._every_s = self._console.is_terminal, enabled, every_s
        # What is long takes several lines beside the bar.
        text = progress.TextColumn("{task.description}{task.fields[details]}", markup=False, table_column=Column())
        self._bars = progress.Progress(
            progress.BarColumn(bar_width=_BAR), progress.TaskProgressColumn(), progress.TimeElapsedColumn(), text,
            # Results may be printed while it is shown, on a standard output that is a file.
            console=self._console, transient=True, redirect_stdout=False, disable=not (self._on_terminal and enabled),
        )  # fmt: skip
        self._bar = self._bars.add_task("preparing", total=None, details="")
        self._said_at = time.monotonic()
        self._stage, self._done = "", 0
        self._began = (0.0, 0)

    @property
    def room(self) -> int:
        """Characters that fit beside the bar in one line."""
        return max(1, self._console.width - _BESIDE)

    def __enter__(self) -> Self:
        """Show it."""
        self._bars.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the bar."""
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line, or several, that stay; on a terminal they are wrapped between words."""
        self._console.print("\n".join(map(printable, line.split("\n"))), soft_wrap=not self._on_terminal)

    def begin(self, title: str) -> None:
        """Name what begins: the bar's title, or at once a line."""
        if self._on_terminal:
            self._bars.remove_task(self._bar)
            self._bar = self._bars.add_task(title, total=None, details="")
        elif self._enabled and self._every_s < math.inf:
            self._said_at = time.monotonic()
            self.say(title)

    def steps(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are done, with their rate and the time left."""
        now = time.monotonic()
        if stage != self._stage or done < self._done:
            # What was done before the first call, as in a resumed training, is not part of the rate.
            self._stage, self._began = stage, (now, done)
        self._done = done
        rate = (done - self._began[1]) / max(1e-9, now - self._began[0])
        left = f", {rate:.1f}/s, {duration((total - done) / rate)} left" if rate else ""
        self.show(stage, done, total, f"{done} of {total}{left}")

    def ingesting(self, split: str, done: int, total: int) -> None:
        """Show how many images of a split are in the patch stores."""
        self.steps(f"making the patch stores: {split} images", done, total)

    def show(self, title: str, done: float, total: float | None, details: str) -> None:
        """Show how far something is, or print a line if it is time for one."""
        if self._on_terminal:
            self._bars.update(
                self._bar,
                description=printable(title),
                completed=done,
                total=total,
                details=f": {details}" if details else "",
            )
        elif self._enabled and time.monotonic() - self._said_at >= self._every_s:
            self._said_at = time.monotonic()
            self.say(f"{title}: {details}")
