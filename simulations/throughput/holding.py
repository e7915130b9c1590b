"""Stops processes for a while, and tells which training steps that cut."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import psutil

# From when to when processes were stopped, Unix time in seconds.
Span = tuple[float, float]
# A step's end is stamped a moment after its clock was read. A stop in between is over before the stamp, and falls into
# the next step as well.
_MARGIN_S = 0.02


class Brake:
    """Pauses and resumes a group of processes."""

    def __init__(self) -> None:
        self.spans: list[Span] = []  #: Spans of all finished holds.
        self._held: list[psutil.Process] = []
        self._since = 0.0

    def hold(self, processes: Iterable[psutil.Process]) -> None:
        """Stop processes, in addition to those that are stopped already; those that have ended do no harm."""
        if not self._held:
            self._since = time.time()
        for process in processes:
            # First the list, then the signal: whatever happens between the two, `go` reaches it.
            self._held.append(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def go(self) -> None:
        """Resume all stopped processes, if any."""
        if not self._held:
            return
        for process in self._held:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._held = []
        self.spans.append((self._since, time.time()))


def breathe(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Let stopped processes run for some seconds."""
    family = list(processes)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    time.sleep(seconds)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()


def cut_steps(began: float, ends: Sequence[float], spans: Iterable[Span]) -> tuple[int, ...]:
    """Return the indices of the steps during which their processes were stopped (`spans`).

    `began` is when the first step began, Unix time in seconds; `ends` when each step ended and the next began.
    """
    held = list(spans)
    return tuple(
        index
        for index, (first, last) in enumerate(pairwise([began, *ends]))
        if any(since < last and first < until + _MARGIN_S for since, until in held)
    )
