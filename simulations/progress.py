"""Shows on standard error which trial is running, and how far it is."""

from __future__ import annotations

import sys

from psl_flower.cli import progress
from psl_flower.text import duration


class Progress(progress.Progress):
    """The progress of trials, in each of which parties work side by side; use as a context manager."""

    def __init__(self) -> None:
        super().__init__(sys.stderr, every_s=10.0)
        self._trial, self._parties = "", dict[str, str]()

    def trial(self, name: str) -> None:
        """Begin a trial."""
        self._trial, self._parties = name, {}
        self.begin(f"{name}: starting")

    def step(self, who: str, done: int, total: int, left_s: float | None = None) -> None:
        """Show the steps that one of a trial's parties has done, and the seconds left for all trials if known."""
        self._parties[who] = f"{who} step {done} of {total}"
        left = [] if left_s is None else [f"about {duration(left_s)} left in all"]
        self.show(self._trial, done, total, ", ".join([*self._parties.values(), *left]))

    def result(self, text: str) -> None:
        """Print what a trial came to."""
        self.say(f"{self._trial}: {text}")
