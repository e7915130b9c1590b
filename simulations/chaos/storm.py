"""Kills at random moments while runs train, each of which is followed until all have recovered."""

from __future__ import annotations

import math
import random
import re
import sys
import time
from dataclasses import dataclass

from psl_flower.errors import RunError
from simulations.chaos.deployed_results import RECOVERING, RESUMED, TRAINED_ON, TRAINING, WENT_BACK, Kill
from simulations.chaos.federation import CLIENT_APP, ROLES, SUPERLINK, SUPERNODE, Federation
from simulations.chaos.operated import OperatedRun
from simulations.separate_hosts.network import Host

# This share of the kills comes before the run has recovered from the kill before: after a pause that is as likely to be
# between 1 and 2 s as between 20 and 40 s, since a run has much to do in its first moments, and then waits long.
_SHARE_RECOVERING, _PAUSES_S = 0.88, (0.5, 45.0)
# Of the moments, this share in which two processes or hosts are killed.
_SHARE_TWO = 0.4
_LONGEST_STEPS_S = 4.0
# Until all have recovered, on a machine that has much else to do: Flower alone takes a minute to notice some losses.
_LONGEST_RECOVERY_S = 1200.0
_POLL_S = 0.5
_GONE_BACK = "go back to step"
_WARNING = re.compile(r"^\S+ \S+ (?:WARNING|ERROR) (.*)$", re.MULTILINE)
_LONGEST_SAID = 300


@dataclass
class _Pending:
    """A kill from which not all runs have recovered yet."""

    role: str
    host: Host
    moment: str
    at_s: float
    killed: float
    at_once: int
    steps: tuple[int, ...]
    committed: tuple[int, ...]
    logged: tuple[int, ...]
    resumed: tuple[int, ...]
    connections: int

    @property
    def words(self) -> str:
        """What was killed, where and when."""
        return f"{self.role} of {self.host.folder.name} at step {max(self.steps)}"


class Storm:
    """Kills processes of a federation while runs train on it.

    Parameters
    ----------
    federation : Federation
        Whose processes.
    runs : list of OperatedRun
        All that train on it.
    draw : random.Random
        Decides roles and moments.
    steps_per_round : int
        Of the runs.
    under_way : int
        Steps that a run may still commit after a kill though it has lost what was killed.
    """

    def __init__(
        self,
        federation: Federation,
        runs: list[OperatedRun],
        draw: random.Random,
        *,
        steps_per_round: int,
        under_way: int,
    ) -> None:
        self.kills: list[Kill] = []
        self._federation, self._runs, self._draw = federation, runs, draw
        self._steps_per_round, self._under_way = steps_per_round, under_way
        self._pending: list[_Pending] = []
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether all runs are complete."""
        return all(run.complete for run in self._runs)

    def rage(self, kills: int) -> None:
        """Kill that often at most, fewer times if the runs are over before; then follow the runs to their end.

        Raises
        ------
        RunError
            If a run does not recover in time.
        """
        try:
            self._wait(0.0, first_step=True)
            self._kill_all(kills)
            self._settle()
        finally:
            self._federation.tend(all_back=True)
            self.kills += [self._recorded(kill, None) for kill in self._pending]
            self.kills.sort(key=lambda kill: kill.at_s)
            self._pending.clear()

    def _kill_all(self, kills: int) -> None:
        left = kills
        while left and not self.over:
            left -= self._kill(min(left, 2 if self._draw.random() < _SHARE_TWO else 1))
            if left and self._draw.random() < _SHARE_RECOVERING:
                shortest, longest = map(math.log, _PAUSES_S)
                self._wait(math.exp(self._draw.uniform(shortest, longest)), recovered=False)
            else:
                self._wait(self._draw.uniform(0.0, _LONGEST_STEPS_S))

    def _kill(self, number: int) -> int:
        """Kill this number of processes, passing over roles without one; return the number killed."""
        moment = RECOVERING if self._pending else TRAINING
        killed, runs = time.monotonic(), self._runs
        connections = {node.namespace: self._federation.connections(node) for node in self._federation.nodes}
        steps, committed = tuple(run.step for run in runs), tuple(run.committed for run in runs)
        logged, resumed = tuple(len(run.log) for run in runs), tuple(run.resumed for run in runs)
        found: list[tuple[str, Host]] = []
        for role in self._draw.sample(ROLES, len(ROLES)):
            host = self._federation.kill(role, self._draw) if len(found) < number else None
            if host is not None:
                found.append((role, host))
        for role, host in found:
            kill = _Pending(
                role=role, host=host, moment=moment, at_s=killed - self._began, killed=killed, at_once=len(found),
                steps=steps, committed=committed, logged=logged, resumed=resumed,
                connections=connections.get(host.namespace, 0),
            )  # fmt: skip
            self._pending.append(kill)
            print(f"{runs[0].folder.name}: {kill.words}, {moment}", file=sys.stderr)
        return len(found)

    def _wait(self, pause_s: float, *, recovered: bool = True, first_step: bool = False) -> None:
        """Tend the runs for a time, counted from when they have recovered (or at once), or until they are over."""
        deadline = time.monotonic() + _LONGEST_RECOVERY_S
        until = None if recovered else time.monotonic() + pause_s
        while not self.over and (until is None or time.monotonic() < until):
            self._tend()
            if until is None and not self._pending and (not first_step or all(run.committed for run in self._runs)):
                until = time.monotonic() + pause_s
            if until is None and time.monotonic() > deadline:
                raise RunError(f"no recovery within {_LONGEST_RECOVERY_S:g} s from: {self._open()}")
            time.sleep(_POLL_S)

    def _settle(self) -> None:
        """Follow the runs to their end."""
        deadline, committed = time.monotonic() + _LONGEST_RECOVERY_S, -1
        while not self.over:
            self._tend()
            now = sum(run.committed for run in self._runs)
            if now != committed:
                committed, deadline = now, time.monotonic() + _LONGEST_RECOVERY_S
            if time.monotonic() > deadline:
                raise RunError(f"no step within {_LONGEST_RECOVERY_S:g} s after: {self._open()}")
            time.sleep(_POLL_S)
        self._note_recovered()

    def _tend(self) -> None:
        self._federation.tend()
        for run in self._runs:
            others = sum(other.begun and not other.complete for other in self._runs if other is not run)
            run.tend(others)
        self._note_recovered()

    def _note_recovered(self) -> None:
        now = time.monotonic()
        for kill in [kill for kill in self._pending if self._has_recovered(kill)]:
            self._pending.remove(kill)
            self.kills.append(self._recorded(kill, now - kill.killed))

    def _has_recovered(self, kill: _Pending) -> bool:
        """Whether every run has got beyond what the kill could disturb, and what was killed runs again."""
        moved = all(run.complete or run.committed > self._disturbed(kill, n) for n, run in enumerate(self._runs))
        back = self._federation.superlink_runs()
        if kill.host is not self._federation.server and kill.role != CLIENT_APP:
            back = back and self._federation.connections(kill.host) > kill.connections
        return moved and back

    def _disturbed(self, kill: _Pending, n: int) -> int:
        """Return the last step of a run that may have been done as if nothing had been killed."""
        step = max(kill.steps[n], kill.committed[n])
        if kill.role in (SUPERLINK, SUPERNODE) and self._runs[n].resumed == kill.resumed[n]:
            # Streams do not need them: the loss shows at the end of the round.
            return max(step + self._under_way, -(-(step + 1) // self._steps_per_round) * self._steps_per_round)
        return step + self._under_way

    def _recorded(self, kill: _Pending, recovery_s: float | None) -> Kill:
        logged = "\n".join(run.log[start:] for run, start in zip(self._runs, kill.logged, strict=True))
        resumed = any(run.resumed > before for run, before in zip(self._runs, kill.resumed, strict=True))
        warning = _WARNING.search(logged)
        return Kill(
            role=kill.role,
            host=kill.host.folder.name,
            moment=kill.moment,
            at_once=kill.at_once,
            at_s=round(kill.at_s, 1),
            step=max(kill.steps),
            committed=min(kill.committed),
            seen=RESUMED if resumed else WENT_BACK if _GONE_BACK in logged else TRAINED_ON,
            said=warning[1][:_LONGEST_SAID] if warning else "",
            recovery_s=None if recovery_s is None else round(recovery_s, 1),
        )

    def _open(self) -> str:
        return ", ".join(kill.words for kill in self._pending)
