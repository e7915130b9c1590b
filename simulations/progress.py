"""Says on standard error what is being tried, and how far it is."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.status import Status

_LINE_EVERY_S = 10.0


class Progress:
    """One line that changes on a terminal, lines elsewhere; use as a context manager.

    Parameters
    ----------
    stream : TextIO
        Where to say it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Status | None = None
        self._trial, self._steps = "", dict[str, str]()
        self._said_at = 0.0

    def __enter__(self) -> Progress:
        """Begin."""
        if self._console.is_terminal:
            self._live = self._console.status("preparing")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def ingesting(self, stage: str, done: int, total: int) -> None:
        """Show how far the making of the patch stores is."""
        self._say(f"making the patch stores: {done} of {total} {stage} images", now=done == total)

    def trial(self, name: str) -> None:
        """Begin a trial."""
        self._trial, self._steps = name, {}
        self._say(f"{name}: starting", now=True)

    def step(self, who: str, done: int, total: int, left_s: float | None = None) -> None:
        """Show the steps that one of a trial's parties has done, and the seconds left for all trials if known."""
        self._steps[who] = f"{who} step {done} of {total}"
        left = "" if left_s is None else f", about {timedelta(seconds=round(left_s))} left in all"
        self._say(f"{self._trial}: {', '.join(self._steps.values())}{left}")

    def result(self, text: str) -> None:
        """Say what a trial came to."""
        self._console.print(f"{self._trial}: {text}")

    def _say(self, text: str, *, now: bool = False) -> None:
        if self._live is not None:
            self._live.update(text)
        elif now or time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(text)
