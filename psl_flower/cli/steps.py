"""Shows how long steps of several stages take: rate and remaining time, as bars on a terminal, as lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0


class Steps:
    """Stages with so many steps each; see `steps_shown`.

    Parameters
    ----------
    console : Console
        Where to show them.
    bars : Progress
        Used on a terminal.
    """

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console, self._bars = console, bars
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._said_at = time.monotonic()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(line)

    def steps(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are done."""
        now = time.monotonic()
        # What was done before the first call, as in a resumed training, is not part of the rate.
        began, before = self._began.setdefault(stage, (now, done))
        rate = (done - before) / (now - began) if now > began else 0.0
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, rate="")
            self._bars.update(self._tasks[stage], completed=done, rate=f"{rate:.1f}/s" if rate else "")
        elif now - self._said_at >= _LINE_EVERY_S:
            self._said_at = now
            left = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate else ""
            self._console.print(f"{stage}: {done} of {total}{left}")


@contextlib.contextmanager
def steps_shown() -> Iterator[Steps]:
    """Yield what shows steps on standard error while the context is open."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield Steps(console, bars)
