"""The disturbed run: its processes, progress and restarts."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from psl_flower.cli.train import RESTARTING
from psl_flower.errors import RunError
from psl_flower.launch.environment import environment
from psl_flower.launch.superlink import last_line
from psl_flower.runs.folder import RunFolder
from simulations.reports import Values

# What is killed -> how its processes are recognised.
ROLES = {"node": "ClientAppActor", "server": "flwr-simulation", "SuperLink": "flower-superlink"}
_MARK = "PSL_CHAOS"
_NAME = "chaos"
_POLL_S = 0.2
# To start, restart, or reach the next kill, on a busy machine.
_LONGEST_WAIT_S = 600.0


class Job:
    """A run under `psl train --retries` in a separate workspace; use as a context manager, which leaves no process.

    Parameters
    ----------
    workspace : Path
        Where it goes.
    settings : dict
        Of the run.
    retries : int
        Restarts allowed.

    Attributes
    ----------
    run : RunFolder
        The run's.
    restarts : int
        Restarts so far.
    """

    def __init__(self, workspace: Path, settings: Values, retries: int) -> None:
        self.run, self.restarts = RunFolder(workspace / "runs" / _NAME), 0
        self._workspace, self._began_anew = workspace, 0.0
        given = [f"{key}={value}" for key, value in {**settings, "run-name": _NAME}.items()]
        command = [sys.executable, "-m", "psl_flower.cli.main", "train", *given, "--retries", str(retries)]
        self._process = subprocess.Popen(
            command, env={**environment(), "PSL_WORKSPACE": str(workspace), _MARK: str(workspace)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._said: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Job:
        """Begin; it has begun already."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Kill its remaining processes."""
        self._process.kill()
        while left := self._processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=_POLL_S)
        self._process.wait()

    def finish(self) -> None:
        """Wait for its end; raises RunError if it has failed."""
        self._process.wait()
        self._reader.join()
        if self._process.returncode != 0:
            raise RunError(f"the run did not survive: {self._last_words()}")

    def step(self) -> int:
        """Return the training step that it has reached; 0 while it does not train."""
        status = self.run.read_status()
        # A status that an ended attempt wrote late does not tell where the run is now.
        if status is None or status.state != "training" or status.updated < self._began_anew:
            return 0
        return status.step

    def wait_for_step(self, step: int) -> None:
        """Wait until it has reached the step, and has a checkpoint to continue from."""
        self._wait(lambda: self.step() >= step and bool(self.run.checkpoints.steps()), f"step {step}")

    def wait_for_process(self, role: str) -> None:
        """Wait until there is a process of a role."""
        self._wait(lambda: bool(self._victims(role)), f"a process of the {role}")

    def wait_for_restart(self, restarts: int) -> int:
        """Wait for a number of restarts; return the step that the last one starts from."""
        self._wait(lambda: self.restarts >= restarts, f"{restarts} new beginnings")
        return self.run.checkpoints.steps()[-1]

    def kill(self, role: str, draw: random.Random) -> None:
        """Kill one process of a role; raises RunError if there is none."""
        victims = self._victims(role)
        if not victims:
            raise RunError(f"no {role} to kill at step {self.step()}")
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself, which is as good
            draw.choice(victims).kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line)
            if RESTARTING in line:
                self._began_anew = time.time()
                self.restarts += 1

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not condition():
            if self._process.poll() is not None:
                self._reader.join()
                raise RunError(f"the run ended too early: {self._last_words()}")
            if time.monotonic() > deadline:
                raise RunError(f"waited {_LONGEST_WAIT_S:g} s for {what}: {self._last_words()}")
            time.sleep(_POLL_S)

    def _last_words(self) -> str:
        return last_line("".join(self._said))

    def _victims(self, role: str) -> list[psutil.Process]:
        return sorted((p for p in self._processes() if ROLES[role] in _title(p)), key=lambda process: process.pid)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == str(self._workspace) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} {' '.join(process.cmdline())}"
    return ""
