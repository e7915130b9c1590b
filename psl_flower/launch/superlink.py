"""A local SuperLink of our own for one simulation: started, watched, and stopped with all its processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import tomli_w

from psl_flower.errors import RunError
from psl_flower.launch import signals

_START_TIMEOUT_S = 60.0
# With the grace that `psl train` gives a step after SIGTERM it must fit into the 10 s after which `docker stop` kills.
_STOP_TIMEOUT_S = 3.0
_CALL_TIMEOUT_S = 120.0
_CONNECTION = "psl"
# In Flower's log: "INFO :   text", and of its web server "2026-11-22T10:29:24.229Z INFO [uvicorn.access] text".
_NOISE = re.compile(r"(\S+Z )?\s*(DEBUG|INFO|WARNING)\b")
# In Ray's: "[date C 20952 20952] (raylet) file.cc:3362:  text", where C is for fatal; a failed check's words come last.
_RAY_FATAL = re.compile(r"^\[[^\]]* C \d+ \d+\] \(raylet\) \S+\s+(?:.*Check failed: \S+ )?(.*)$", re.MULTILINE)

# Quiet and offline; and no `uv sync` of our dependencies, gigabytes of them, into a fresh environment for every run.
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # At Ray's niceness 15 the Uppers starve on few cores beside the Lower, which waits for them.
    "RAY_worker_niceness": "0",
}


def environment() -> dict[str, str]:
    """Return the environment in which Flower's processes run here: ours, with Flower kept quiet and offline.

    Programs installed beside this Python come first: Flower starts its own by name, and the environment need not be
    activated.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **_ENVIRONMENT, "PATH": path}


def last_line(output: str) -> str:
    """Return the last line of what a process said that is not blank, up to 500 characters; or that there is none."""
    lines = output.strip().splitlines()
    return lines[-1].strip()[:500] if lines else "it said nothing"


def telling(log: str) -> str:
    """Return the lines of Flower's log that may say why something ended: no requests served, progress or advice."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return "\n".join(line for line in plain.splitlines() if not _NOISE.match(line))


def ray_failure(drivers: Collection[int]) -> str:
    """Return why Ray's raylet gave up, from its own log; empty if it did not.

    Parameters
    ----------
    drivers : collection of int
        Ids of the processes that started Ray, by which its sessions are named.
    """
    # As Ray itself chooses the folder.
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    for driver in drivers:
        # Where ids come round, the newest is ours.
        for log in sorted(folder.glob(f"session_*_{driver}/logs/raylet.out"))[-1:]:
            fatal = _RAY_FATAL.findall(_read(log))
            if fatal:
                return f"Ray failed: {last_line(fatal[-1])} (Ray's log: {log}); is the machine too busy? Try again"
    return ""


class LocalSuperLink:
    """Starts `flower-superlink --simulation` on free ports, with a FLWR_HOME of its own; use as a context manager.

    While it is there, SIGTERM and SIGHUP raise `psl_flower.launch.signals.Terminated`, so that it does not stay behind.

    Raises
    ------
    RunError
        On entering, if Flower is not installed beside this Python or the SuperLink does not come up.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="psl-flower-"))
        self.log = self.home / "superlink.log"
        self._environment = {**environment(), "FLWR_HOME": str(self.home)}
        self._process: subprocess.Popen[bytes] | None = None
        self._signals = contextlib.ExitStack()
        self._run_id = ""
        self._simulated: set[int] = set()  # ids of the processes that simulate, as they were seen

    def __enter__(self) -> LocalSuperLink:
        """Start it; it comes up while the caller goes on (`wait`)."""
        self._signals.enter_context(signals.raising())
        try:
            self._launch()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and whatever it started; drop its folder."""
        self._clean_up()

    def _clean_up(self) -> None:
        with self._signals, signals.ignoring():
            self.stop()
            shutil.rmtree(self.home, ignore_errors=True)

    def _launch(self) -> None:
        port, control = _free_port(), _free_port()
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (self.home / "config.toml").write_text(tomli_w.dumps(config), "utf-8")
        self._health = f"http://127.0.0.1:{port}/health"
        command = [
            _program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
            "--control-api-address", f"127.0.0.1:{control}", "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C at the terminal is for us to handle, not for Flower's processes.
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers.

        Raises
        ------
        RunError
            If it ends, or does not answer in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RunError(f"Flower's SuperLink ended at its start: {self.last_words()}")
            # Another program may have taken the port since it was chosen, and answer in another protocol.
            refusals = (OSError, http.client.HTTPException)
            with contextlib.suppress(*refusals), urllib.request.urlopen(self._health, timeout=1):
                return
            time.sleep(0.1)
        raise RunError(f"Flower's SuperLink did not answer within {_START_TIMEOUT_S:g} s: {self.last_words()}")

    def flwr(self, arguments: Sequence[str]) -> dict[str, object]:
        """Call `flwr ... --format json` and return what it prints.

        Raises
        ------
        RunError
            If it fails; the message is Flower's own.
        """
        command = [_program("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=_CALL_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RunError(f"`flwr {arguments[0]}` did not end within {_CALL_TIMEOUT_S:g} s") from None
        start = done.stdout.find("{")
        try:
            answer = json.loads(done.stdout[start:]) if start >= 0 else {}
        except json.JSONDecodeError:
            answer = {}
        if done.returncode or not isinstance(answer, dict) or answer.get("success") is False:
            told = answer.get("error-message") if isinstance(answer, dict) else ""
            words = told or " ".join((done.stderr or done.stdout).split())[-500:]
            raise RunError(f"`flwr {arguments[0]}` failed: {words}")
        return answer

    def run(self, app: Path, run_config: Mapping[str, object], federation_config: Mapping[str, object]) -> str:
        """Start `flwr run` on an app's folder; return Flower's id of the run.

        Raises
        ------
        RunError
            If Flower refuses it.
        """
        path = self.home / "run-config.toml"
        path.write_text(tomli_w.dumps(dict(run_config)), "utf-8")
        federation = " ".join(f"{key}={value}" for key, value in federation_config.items())
        arguments = ["run", str(app), _CONNECTION, "--run-config", str(path), "--federation-config", federation]
        self._run_id = str(self.flwr(arguments)["run-id"])
        return self._run_id

    def is_up(self) -> bool:
        """Return whether the SuperLink's own process is there."""
        return self._process is not None and self._process.poll() is None

    def is_running(self) -> bool:
        """Return whether a process that simulates is there."""
        simulating = [child for child in self.processes() if "simulation" in " ".join(_command_line(child)[:6])]
        self._simulated |= {child.pid for child in simulating}
        return bool(simulating)

    def processes(self) -> list[psutil.Process]:
        """Return the processes that it has started, and theirs."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children(recursive=True))
        return []

    def status(self, run_id: str) -> str:
        """Return Flower's own word on a run, such as "finished:completed"."""
        runs = self.flwr(["list", "--run-id", run_id]).get("runs")
        return str(runs[0].get("status")) if isinstance(runs, list) and runs else "unknown"

    def last_words(self) -> str:
        """Return why its run ended: Ray's fatal error, Flower's word on the run, or else its log's last line."""
        return ray_failure(self._simulated) or self._details() or last_line(telling(_read(self.log)))

    def _details(self) -> str:
        """Return what Flower has noted about why the run ended; empty if it has noted nothing, or is gone."""
        if not self._run_id or not self.is_up():
            return ""
        with contextlib.suppress(RunError):
            runs = self.flwr(["list", "--run-id", self._run_id]).get("runs")
            details = str(runs[0].get("status-details") or "") if isinstance(runs, list) and runs else ""
            return last_line(details) if details not in ("", "N/A") else ""
        return ""

    def stop(self) -> None:
        """End it and all processes that it started: asked first, then killed; safe to call again."""
        if self._process is None:
            return
        family = [*self.processes(), *self._orphans()]
        with contextlib.suppress(psutil.NoSuchProcess):
            family.append(psutil.Process(self._process.pid))
        for process in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_TIMEOUT_S)
        for process in [*alive, *self._orphans()]:  # the latter were started while the others ended
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None

    def _orphans(self) -> list[psutil.Process]:
        """Return the processes of this SuperLink whose parent has died: Ray's, where the simulation was killed."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FLWR_HOME") == str(self.home):
                    found.append(process)
        return found


def _read(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text("utf-8", "replace")
    return ""


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RunError(f"{name} is not installed; install Flower with: pip install 'flwr[simulation]'")
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
