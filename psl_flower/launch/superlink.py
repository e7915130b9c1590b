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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import tomli_w

from psl_flower.errors import RunError
from psl_flower.launch import guard, home, only_this_user, signals
from psl_flower.launch.environment import environment
from psl_flower.launch.staging import staged

_START_TIMEOUT_S = 60.0
# With the grace that `psl train` gives a step after SIGTERM it must fit into the 10 s after which `docker stop` kills.
_STOP_TIMEOUT_S = 3.0
_CALL_TIMEOUT_S = 120.0
_POLL_S = 0.1
_CONNECTION = "psl"
# In Flower's log: "INFO :   text", and of its web server "2026-11-22T10:29:24.229Z INFO [uvicorn.access] text".
_NOISE = re.compile(r"(\S+Z )?\s*(DEBUG|INFO|WARNING)\b")
# In Ray's: "[date C 20952 20952] (raylet) file.cc:3362:  text", where C is for fatal; a failed check's words come last.
_RAY_FATAL = re.compile(r"^\[[^\]]* C \d+ \d+\] \(raylet\) \S+\s+(?:.*Check failed: \S+ )?(.*)$", re.MULTILINE)
_RAYLET_LOG = "ray/session_*_*/logs/raylet.out"
# The first such line in a run's log has the cause; those that follow say only that there was one.
_CAUSE = re.compile(r"An exception occurr?ed ?!! (.*)")

# Called again and again while something is waited for.
Waiting = Callable[[], None]


def silently() -> None:
    """Do nothing meanwhile."""


def last_line(output: str) -> str:
    """Return the last line of a process's output that is not blank, up to 500 characters; or say that there is none."""
    lines = output.strip().splitlines()
    return lines[-1].strip()[:500] if lines else "it said nothing"


def telling(log: str) -> str:
    """Return the lines of Flower's log that may say why something ended: no requests served, progress or advice."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return "\n".join(line for line in plain.splitlines() if not _NOISE.match(line))


def ray_failure(folder: Path) -> str:
    """Return why Ray's raylet gave up, from its own log in a SuperLink's folder; empty if it did not."""
    for log in sorted(folder.glob(_RAYLET_LOG)):
        if fatal := _RAY_FATAL.findall(_read(log)):
            return f"Ray failed: {last_line(fatal[-1])}; is the machine too busy? Try again"
    return ""


class LocalSuperLink:
    """Starts `flower-superlink --simulation` for this user alone, with its own FLWR_HOME; use as a context manager.

    While it runs, SIGTERM and SIGHUP raise `psl_flower.launch.signals.Terminated`, so that it does not stay behind.
    If this process is killed, it ends by itself.

    Raises
    ------
    RunError
        If there is no folder for its files; on entering, if Flower is not installed beside this Python or the SuperLink
        does not come up.
    """

    def __init__(self) -> None:
        self.home = home.make()
        self.log = self.home / "superlink.log"
        self._environment = {**environment(), "FLWR_HOME": str(self.home), "RAY_TMPDIR": str(self.home)}
        self._process: subprocess.Popen[bytes] | None = None
        self._open = contextlib.ExitStack()
        self._run_id = ""

    def __enter__(self) -> LocalSuperLink:
        """Start it; it comes up while the caller works (`wait`)."""
        self._open.enter_context(signals.raising())
        try:
            home.end_leftovers()
            self._open.callback(os.close, home.claim(self.home))
            self._launch()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and the processes it started; remove its folder."""
        self._clean_up()

    def _clean_up(self) -> None:
        with self._open, signals.ignoring():
            self.stop()
            shutil.rmtree(self.home, ignore_errors=True)

    def _launch(self) -> None:
        port = _free_port()
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (self.home / "config.toml").write_text(tomli_w.dumps(config), "utf-8")
        self._health = f"http://127.0.0.1:{port}/health"
        command = [
            sys.executable, "-P", "-m", guard.__name__, str(self.home), _program("flower-superlink"),
            "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            # A separate session: we handle Ctrl-C at the terminal, not Flower's processes. And another folder: Ray puts
            # its current one first on its workers' sys.path, and a user's may hold any module.
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=self.home, stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait(self, waiting: Waiting = silently) -> None:
        """Wait until it answers; `waiting` is called again and again meanwhile.

        Raises
        ------
        RunError
            If it ends, or does not answer in time.
        """
        assert self._process is not None
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline, unguarded = time.monotonic() + _START_TIMEOUT_S, False
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RunError(f"Flower's SuperLink ended at its start: {self.last_words()}")
            # Another program may have taken the port since it was chosen, and answer anything.
            failures = (OSError, http.client.HTTPException)
            with contextlib.suppress(*failures), direct.open(self._health, timeout=1) as answer:
                if only_this_user.HEADER in answer.headers:
                    return
                unguarded = True
            waiting()
            time.sleep(_POLL_S)
        if unguarded:
            raise RunError(
                f"what answers at {self._health} is not guarded by psl train: another program took the port, so try "
                "again; or this Flower starts its server in another way, so install one that psl-flower supports"
            )
        raise RunError(f"Flower's SuperLink did not answer within {_START_TIMEOUT_S:g} s: {self.last_words()}")

    def flwr(self, arguments: Sequence[str], waiting: Waiting = silently) -> dict[str, object]:
        """Call `flwr ... --format json` and return the JSON that it prints; `waiting` is called meanwhile.

        Raises
        ------
        RunError
            If it fails; the message is Flower's own.
        """
        done = self._call([*arguments, "--format", "json"], waiting)
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

    def _call(self, arguments: Sequence[str], waiting: Waiting = silently) -> subprocess.CompletedProcess[str]:
        deadline = time.monotonic() + _CALL_TIMEOUT_S
        with subprocess.Popen(
            [_program("flwr"), *arguments], env=self._environment, cwd=self.home, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                while time.monotonic() < deadline:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        stdout, stderr = process.communicate(timeout=_POLL_S)
                        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
                    waiting()
            finally:
                process.kill()
        raise RunError(f"`flwr {arguments[0]}` did not end within {_CALL_TIMEOUT_S:g} s")

    def run(
        self,
        app: Path,
        run_config: Mapping[str, object],
        federation_config: Mapping[str, object],
        waiting: Waiting = silently,
    ) -> str:
        """Start `flwr run` on an app's folder; return Flower's id of the run. `waiting` is called meanwhile.

        Raises
        ------
        RunError
            If Flower refuses it, or the disk a copy of the app.
        """
        path = self.home / "run-config.toml"
        path.write_text(tomli_w.dumps(dict(run_config)), "utf-8")
        federation = " ".join(f"{key}={value}" for key, value in federation_config.items())
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            copy = staged(app, Path(folder) / "app")
            arguments = ["run", str(copy), _CONNECTION, "--run-config", str(path), "--federation-config", federation]
            self._run_id = str(self.flwr(arguments, waiting)["run-id"])
        return self._run_id

    def is_up(self) -> bool:
        """Check if the SuperLink's own process is alive."""
        return self._process is not None and self._process.poll() is None

    def is_running(self) -> bool:
        """Check if a simulating process is alive."""
        return any("simulation" in " ".join(_command_line(child)[:6]) for child in self.processes())

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
        """Return why its run ended: Ray's fatal error, Flower's word on the run, or else its log's last line.

        What the run and Ray have logged is added to the SuperLink's log.
        """
        logs = [self._run_log(), *(_read(log) for log in sorted(self.home.glob(_RAYLET_LOG)))]
        told = telling(_read(self.log))
        if any(logs):
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(logs)
        cause = _CAUSE.search(logs[0])
        return ray_failure(self.home) or (last_line(cause[1]) if cause else self._details() or last_line(told))

    def _run_log(self) -> str:
        """Return the run's log; empty if it is missing or the SuperLink is gone."""
        if self._run_id and self.is_up():
            with contextlib.suppress(RunError):
                return self._call(["log", self._run_id, "--show"]).stdout
        return ""

    def _details(self) -> str:
        """Return Flower's reason for the run's end; empty if it gives none or is gone."""
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
        family = home.family(self.home)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(family, timeout=_STOP_TIMEOUT_S)
        home.kill(self.home)
        self._process.communicate()
        self._process = None


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
