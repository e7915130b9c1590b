"""A federated run and the one process take turns on the machine: while one computes, the other is stopped.

So both see the same stretch of time, and a machine whose speed drifts does not change their ratio.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

import psutil

from simulations.memory import LOWER, UPPER, role_of
from simulations.throughput.holding import Brake, Span, breathe
from simulations.throughput.one_process import Opponent
from simulations.throughput.results import Settings

# Flower ends a run whose process has sent no heartbeat for a minute. It sends one every 23 s at most, and at once
# when it is late: so the Lower runs for a moment now and then; with its Uppers held it soon has nothing to compute.
_BREATH_EVERY_S, _BREATH_S = 15.0, 0.2


class Turns:
    """The one process's turns during a federated run; it is held after its warm-up.

    Turn i (from 1) ends for the one process after the steps of the warm-up, i times those that fall to a turn, and one
    more for each turn: the step that its last stop cut.
    """

    def __init__(self, settings: Settings, opponent: Opponent) -> None:
        self._settings, self._opponent = settings, opponent
        self._brake = Brake()
        self._taken = 0

    @property
    def spans(self) -> list[Span]:
        """When the federated run was stopped."""
        return self._brake.spans

    def take(self, done: int, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        """Hold the federated run, of which `done` steps are done, for a turn of the one process, if one is due.

        The last turn is not taken here: it comes when the federated run is over. `processes` returns the run's
        processes; those that compute are held. Raises RunError if the one process fails.
        """
        # Short steps pass several turns between two looks; they are taken together.
        due = sum(done >= self._end(turn) - 1 for turn in range(1, self._settings.turns))
        if due <= self._taken or done >= self._settings.total_steps:
            return
        self._taken = due
        computing = [(process, role) for process in processes() if (role := _role(process)) in (LOWER, UPPER)]
        breathing = _Breathing([process for process, role in computing if role == LOWER])
        try:
            self._brake.hold(process for process, _ in computing)
            self._opponent.go()
            self._opponent.wait_for(self._end(due), breathing.now_and_then)
            self._opponent.hold()
        finally:
            self._brake.go()

    def _end(self, turn: int) -> int:
        """Return the steps that the one process has done after a turn; the federated run was cut once less by then."""
        settings = self._settings
        return settings.warmup + settings.steps * turn // settings.turns + turn


class _Breathing:
    """Lets stopped processes run for a moment now and then."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes, self._last = processes, time.monotonic()

    def now_and_then(self) -> None:
        """Do so if it is time."""
        if time.monotonic() - self._last >= _BREATH_EVERY_S:
            breathe(self._processes, _BREATH_S)
            self._last = time.monotonic()


def _role(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return role_of(process.cmdline())
    return ""
