"""All trials against deployed federations, several side by side; trials that a result file has are not done again."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch

from psl_flower.errors import RunError
from psl_flower.launch.environment import environment
from simulations import reports
from simulations.chaos.deployed_results import Report, Trial
from simulations.chaos.federation import Federation
from simulations.chaos.trials import Plan, attempt, plans
from simulations.machine import circumstances
from simulations.reports import Values
from simulations.separate_hosts.network import Network, why_not

# One thread each, so that the weights can be compared bit for bit.
SETTINGS: Values = {
    "batch-size": 16, "lr": 0.02, "checkpoint-every": 2, "node-timeout-s": 240, "step-timeout-s": 60,
    "upper-threads": 1, "lower-threads": 1,
}  # fmt: skip
_DATASET, _IMAGES = "digits", (96, 32)


def rage(
    out: Path | None, workspace: Path, *, kills: int, kills_per_run: int, seed: int, nodes: int, federations: int
) -> Report:
    """Do all trials that the result file `out` lacks, several federations side by side, and write it after each.

    Raises
    ------
    RunError
        If this machine does not allow it, or the result file is of something else.
    """
    reason = why_not()
    if reason:
        raise RunError(f"this machine does not allow separate hosts: {reason}")
    report = _known(out) or Report(
        **circumstances(),
        settings={"dataset": _DATASET, "max-train": _IMAGES[0], "max-test": _IMAGES[1], **SETTINGS},
        kills=kills,
        kills_per_run=kills_per_run,
        seed=seed,
        nodes=nodes,
        measurements=(),
    )
    if (report.kills_per_run, report.seed, report.nodes) != (kills_per_run, seed, nodes):
        made = f"--kills-per-run {report.kills_per_run} --seed {report.seed} --nodes {report.nodes}"
        raise RunError(f"{out}: was made with {made}; use these, or another file")
    asked = plans(kills, kills_per_run, seed)
    trials = _Trials(msgspec.structs.replace(report, kills=kills), asked, out, workspace)
    return trials.all(federations)


def _known(out: Path | None) -> Report | None:
    if out is None or not out.exists():
        return None
    found = reports.load(out, Report)
    if found is None:
        raise RunError(f"{out}: is the result file of something else; use another")
    return found


class _Trials:
    """The remaining work, and the report on the rest; several threads take from it."""

    def __init__(self, report: Report, asked: Sequence[Plan], out: Path | None, workspace: Path) -> None:
        # Trials that failed before weights were compared are repeated; differing weights are kept.
        done = {trial.name for trial in report.measurements if not trial.failure}
        self._waiting = deque(plan for plan in asked if plan.name not in done)
        self._order = {plan.name: number for number, plan in enumerate(asked)}
        self._report, self._out, self._workspace = report, out, workspace
        self._lock, self._stopped = threading.Lock(), False
        self._networks: list[Network] = []
        self._errors: list[BaseException] = []

    def all(self, federations: int) -> Report:
        """Do them on a number of federations side by side; return the report."""
        torch.set_num_threads(1)
        # Daemons, since one that waits for a program of a network that is gone would delay the command's end.
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(federations)]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:
            self._stop()
        for error in self._errors:
            raise error
        return self._report

    def _stop(self) -> None:
        """Drop all networks, and let no thread make another."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
        for network in self._networks:
            network.close()

    def _work(self) -> None:
        """Do trials on one federation, on a new one after a trial that failed."""
        try:
            while self._waiting and not self._errors:
                # Another thread may be faster.
                with self._federation() as federation, contextlib.suppress(IndexError):
                    while self._note(attempt(federation, self._waiting.popleft())):
                        pass
        except BaseException as error:
            self._errors.append(error)

    def _note(self, trial: Trial) -> bool:
        """Add a result and return True if it succeeded; a trial ended by the command's own end is not added."""
        with self._lock:
            if self._stopped:
                return False
            others = (known for known in self._report.measurements if known.name != trial.name)
            found = sorted((*others, trial), key=lambda trial: self._order.get(trial.name, len(self._order)))
            self._report = msgspec.structs.replace(self._report, measurements=tuple(found))
            if self._out is not None:
                reports.save(self._out, self._report)
        outcome = "equal" if trial.equal else f"NOT EQUAL {trial.failure}"
        print(
            f"{trial.name} ({trial.kind}): {len(trial.kills)} kills, {trial.seconds:.0f} s, {outcome}", file=sys.stderr
        )
        return trial.equal

    @contextlib.contextmanager
    def _federation(self) -> Iterator[Federation]:
        folder = Path(tempfile.mkdtemp(prefix="federation-", dir=self._workspace))
        with self._lock:
            if self._stopped:
                raise RunError("the command was interrupted")
            network = Network(folder, self._report.nodes, environment())
            self._networks.append(network)
        try:
            ingest = ("--max-train", str(_IMAGES[0]), "--max-test", str(_IMAGES[1]))
            federation = Federation(network, _DATASET, ingest, [f"{key}={value}" for key, value in SETTINGS.items()])
            federation.start()
            yield federation
        finally:
            network.close()
