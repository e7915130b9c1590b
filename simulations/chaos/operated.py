"""A run of a deployed federation with an operator who watches it, and resumes it whenever it has ended too early."""

from __future__ import annotations

import subprocess
import time

from psl_flower.errors import RunError
from psl_flower.runs.folder import CONFIG_FILE, LOG_FILE, Status
from simulations.chaos.federation import Federation

# From `flwr run` to the first words of its ServerApp. On a machine that has too much else to do Flower starts it again
# and again, since it must have come up within 30 s.
_LONGEST_START_S = 900.0
# Before it is submitted again: a SuperLink that is just being started again must answer; and one that lives needs so
# long at most to start a ServerApp.
_PAUSE_S, _LONGEST_WITHOUT_S = 3.0, 90.0


class OperatedRun:
    """One run, submitted by `flwr run` and resumed until it is complete.

    Parameters
    ----------
    federation : Federation
        Where it runs.
    name : str
        Of the run.
    settings : tuple of str
        KEY=VALUE of the run, in addition to those of the federation.
    port : int
        Of its endpoint for streams.

    Attributes
    ----------
    resumed : int
        How often it had to be resumed.
    errors : list of str
        The errors it ended with before; a killed ServerApp leaves none.
    """

    def __init__(self, federation: Federation, name: str, settings: tuple[str, ...], port: int) -> None:
        self.folder, self.resumed = federation.run(name), 0
        self.errors: list[str] = []
        self._federation, self._name = federation, name
        self._settings, self._port = settings, (f"exchange-port={port}",)
        self._earlier: set[str] = set()
        self._submitted_at = 0.0
        self._process = self._submit(f"run-name={name}", *settings)

    @property
    def complete(self) -> bool:
        """Whether it has ended well."""
        status = self._status()
        return status is not None and status.state == "completed"

    @property
    def step(self) -> int:
        """The training step that it has reached; 0 while it does not train."""
        status = self._status()
        return status.step if status is not None and status.state == "training" else 0

    @property
    def committed(self) -> int:
        """The last step that all parties have saved; 0 before any."""
        return max(self.folder.checkpoints.steps(), default=0)

    @property
    def over(self) -> bool:
        """Whether it has ended without being complete."""
        status = self._status()
        return status is not None and (status.died or (status.ended and status.state != "completed"))

    def last_words(self) -> str:
        """Return the error with which it ended."""
        status = self._status()
        return status.message if status is not None and status.ended else "no word, its ServerApp died"

    @property
    def log(self) -> str:
        """All lines that it has logged."""
        path = self.folder.path / LOG_FILE
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @property
    def begun(self) -> bool:
        """Whether the present attempt has a ServerApp that has written a status."""
        return self._status() is not None

    def tend(self, others: int = 0) -> None:
        """Resume it if it is over and not complete, and its host is up; to be called repeatedly.

        Parameters
        ----------
        others : int
            Number of ServerApps known to belong to other runs.

        Raises
        ------
        RunError
            If it writes no status though everything that it needs is running.
        """
        status = self._status()
        if self._federation.away(self._federation.server):
            return
        if status is None:
            self._tend_start(others)
        elif self.over:
            if status.ended:
                self.errors.append(status.message)
            self._earlier.add(status.run_id)
            self.resume()

    def resume(self, *settings: str) -> None:
        """Resume it as the operator would, or start it again if it has no folder yet."""
        self.close()
        self.resumed += 1
        if (self.folder.path / CONFIG_FILE).exists():
            self._process = self._submit(f"resume={self._name}", *settings)
        else:
            self._process = self._submit(f"run-name={self._name}", *self._settings)

    def close(self) -> None:
        """End the `flwr run` that follows it, if it has not ended."""
        self._process.kill()
        self._process.wait()

    def _status(self) -> Status | None:
        """Return the status that the present attempt has written, if it has."""
        status = self.folder.read_status()
        return None if status is None or status.run_id in self._earlier else status

    def _tend_start(self, others: int) -> None:
        """Submit it again if it ended before it wrote a status."""
        waited_s = time.monotonic() - self._submitted_at
        patience_s = _LONGEST_WITHOUT_S if self._process.poll() is None else _PAUSE_S
        if waited_s > patience_s and self._federation.superlink_runs() and self._federation.server_apps() <= others:
            self.resume()
        elif waited_s > _LONGEST_START_S:
            raise RunError(f"run {self._name} has not begun within {_LONGEST_START_S:g} s after `flwr run`")

    def _submit(self, *settings: str) -> subprocess.Popen[bytes]:
        self._submitted_at = time.monotonic()
        return self._federation.submit(*settings, *self._port)
