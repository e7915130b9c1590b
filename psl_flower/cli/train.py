"""The command `psl train`: `flwr run` with fitting settings, a progress bar and a meaningful exit status."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from psl_flower.cli.closing import closing_lines
from psl_flower.cli.output import Json, RunSettings, Workspace, say
from psl_flower.errors import ConfigError, RunError
from psl_flower.system.machine import Clock
from psl_flower.text import counted, duration

if TYPE_CHECKING:
    from pathlib import Path

    from psl_flower.cli.follow import Follower
    from psl_flower.kinds import Kind, Work
    from psl_flower.launch.running import Watch
    from psl_flower.runs.folder import RunFolder, Status

_POLL_S = 0.3
_STARTING = "starting Flower"
_SIGNALLED = 128  # and the signal's number: the exit status of what a signal has ended
# Batch systems ask with SIGTERM and kill what remains after 10 s (docker), 30 s (Slurm, Kubernetes) or 90 s
# (systemd). So the step has this long to end with a checkpoint; then the run ends at once, from its last checkpoint a
# later one continues. The rest of the 10 s is for Flower's processes, of which none stays behind.
_GRACE_S = 4.0

# A leap of the clock that may make Flower give up a run: its processes report to each other every 25 to 30 s.
_LEAP_S = 20.0
# Printed before a failed attempt is repeated; `simulations.chaos` waits for it.
RESTARTING = "restarting from the last checkpoint"


def train(
    settings: RunSettings = None,
    nodes: Annotated[int, typer.Option(min=0, help="Simulated nodes; 0: what fits the grid and this machine.")] = 0,
    retries: Annotated[
        int, typer.Option(min=0, help="Automatic restarts from the last checkpoint after a failure.")
    ] = 0,
    config: Annotated[
        str,
        typer.Option(
            metavar="FILE.toml", help="File of settings, such as a run's config.toml; KEY=VALUE overrides it."
        ),
    ] = "",
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be trained, with bytes, memory and disk.")
    ] = False,
    app: Annotated[str, typer.Option("--app", help="Folder of the Flower app [this installation's].")] = "",
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Train in a simulation on this machine: make the patch stores, start Flower, show progress.

    `psl settings` lists what KEY=VALUE can be, with defaults: dataset=digits, rounds=5, patch-size=8x8, ...

    Ctrl-C ends the run after the current step, with a checkpoint; a second one ends it at once. SIGTERM and SIGHUP do
    the same, but abort the step if it takes longer than a few seconds. The exit code is then 130 (Ctrl-C), 143 or 129.
    """
    given, kind = read_settings(settings or [], config, workspace)
    if dry:
        from psl_flower.cli.dry_run import dry_run

        dry_run(kind, nodes, as_json)
        return
    if (finished := kind.finished()) is not None:
        _report(_Ending(kind.find().folder, finished, "finished:completed"), as_json)
        return
    began = time.monotonic()
    ending = run_to_end(given, kind, nodes=nodes, retries=retries, app=app)
    _report(ending, as_json, time.monotonic() - began if kind.trains else None)


def read_settings(settings: list[str], file: str = "", workspace: str = "") -> tuple[dict[str, object], Kind]:
    """Return KEY=VALUE arguments by key, and parsed; with paths as a run records them, since a retry passes them again.

    Settings that they leave out are taken from a settings file, if given. `workspace` is that of --workspace.
    """
    from psl_flower.cli.config_file import settings_in
    from psl_flower.config.presets import resolved
    from psl_flower.kinds import Resume, kind_of, parse_settings
    from psl_flower.launch.running import local_paths

    try:
        typed = parse_settings([*settings, f"workspace={workspace}"] if workspace else settings)
        if file and typed.get("resume"):
            raise ConfigError("--config and resume contradict each other: a resumed run has its own settings")
        from_file, notes = settings_in(file) if file else ({}, [])
        given = Resume.as_asked(from_file | typed)
        given, preset = resolved(given, given.__contains__)
        given |= local_paths(given)
        kind = kind_of(given)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    for note in filter(None, (*notes, preset)):
        say(note, err=True)
    return given, kind


def run_to_end(given: dict[str, object], kind: Kind, *, nodes: int = 0, retries: int = 0, app: str = "") -> _Ending:
    """Start Flower and a run, show its progress, and return its ending.

    `given` are the settings to pass on, by their kebab-case keys; `nodes` are simulated, 0 for what fits. A run that
    fails starts again from its last checkpoint, `retries` times at most, not counting failures that come with a leap of
    the clock. An empty `app` stands for this installation's folder.

    Raises
    ------
    PslError
        If it cannot be started.
    """
    from psl_flower.kinds import kind_of
    from psl_flower.launch.running import app_folder
    from psl_flower.launch.signals import Terminated
    from psl_flower.runs.folder import Status

    folder = app_folder(app)
    check_machine(kind)
    while True:
        attempt, clock = _Attempt(given, kind), Clock()
        try:
            status, verdict = attempt.run(folder, nodes)
        except RunError as error:
            # Flower failed to start, or ended before it accepted the run: this counts as a failed attempt too.
            run = attempt.folder
            if run is None or not kind.how_to_continue(run, True) or not (retries or clock.ahead_s() > _LEAP_S):
                raise
            status, verdict = Status(state="failed", message=f"error: {error}"), ""
        except KeyboardInterrupt as error:
            # Its processes are gone, so nothing else writes the status.
            name = str(error) if isinstance(error, Terminated) else "Ctrl-C"
            if attempt.watch is not None:
                say(attempt.watch.note_end("stopped", f"ended at once by {name}").message, err=True)
            raise typer.Exit(_SIGNALLED + _number(error)) from None
        run = attempt.folder
        assert run is not None  # it has ended
        done = status.state == "completed" and verdict.endswith("completed")
        # A signal to all processes, as at a shutdown, may make the run fail before it can stop.
        asked, leapt = status.state == "stopped" or attempt.signalled, clock.ahead_s() > _LEAP_S
        if done or asked or not (retries or leapt) or not kind.how_to_continue(run, True):
            return _Ending(run, status, verdict, attempt.signalled)
        retries -= not leapt
        why = _leap(clock.ahead_s()) if leapt else f"{RESTARTING}, {counted(retries, 'retry')} left"
        say(f"{status.message}; {why}", err=True)
        given = kind.settings_to_continue(given, run)
        kind = kind_of(given)


def _leap(ahead_s: float) -> str:
    return (
        f"the clock leapt ahead by {duration(ahead_s)}, as when a machine sleeps, and Flower then gives its runs up; "
        f"{RESTARTING}"
    )


def check_machine(kind: Kind) -> None:
    """Raise ConfigError if a run asks for a GPU or a tracker that this machine lacks, where all its parties are."""
    from psl_flower.runs.tracking import check_tracker

    config = kind.find().config
    check_tracker(config)
    asked = config.machine.device
    if asked.startswith("cuda"):
        from psl_flower.system.devices import choose_device  # loads torch

        choose_device(asked)


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a run ended."""

    run: RunFolder
    status: Status  #: Its last.
    verdict: str  #: Flower's.
    signalled: int = 0  #: The signal that this command passed on as a request to stop; 0 for none.


class _Attempt:
    """Start a new SuperLink and one run: the old SuperLink may have made the last attempt fail.

    Attributes
    ----------
    folder : RunFolder or None
        The run's, once it is chosen.
    watch : Watch or None
        Looks after the run, once it is about to start.
    signalled : int
        The signal that asked this command to stop; 0 before.
    """

    def __init__(self, given: dict[str, object], kind: Kind) -> None:
        self._given, self._kind = given, kind
        self.folder: RunFolder | None = None
        self.watch: Watch | None = None
        self.signalled = 0

    def run(self, app: Path, nodes: int) -> tuple[Status, str]:
        """Start it and show how it goes; return its last status, and how Flower ended it."""
        from psl_flower.cli.follow import Follower
        from psl_flower.launch.running import Watch, prepare, start
        from psl_flower.launch.superlink import LocalSuperLink
        from psl_flower.runs.claim import starting

        kind = self._kind
        with ExitStack() as held, LocalSuperLink() as superlink, Follower(sys.stderr) as follower:

            def begin(work: Work) -> None:
                if work.folder.path.parent == work.config.workspace_path() / "runs":  # and not within a run
                    held.enter_context(starting(work.folder, new=kind.takes_name))

            num_uppers, work = prepare(kind, follower.ingesting, follower.note, begin)
            run = self.folder = work.folder
            follower.skip_log(run)
            follower.begin(_STARTING)
            superlink.wait(lambda: follower.waiting(_STARTING, "its SuperLink"))
            watch = self.watch = Watch(superlink, run, kind.how_to_continue)
            run_id = start(
                superlink, app, self._given, kind, work, num_uppers, nodes,
                waiting=lambda: follower.waiting(_STARTING, "flwr run to hand over the app"),
            )  # fmt: skip
            status, self.signalled = _follow(watch, run, follower, kind.unit)
            verdict = superlink.status(run_id) if status.state == "completed" else ""
            if not (status.state == "completed" and verdict.endswith("completed")) and run.path.is_dir():
                with suppress(OSError):  # a full disk, say: the run's own end is what counts
                    shutil.copyfile(superlink.log, run.path / "flower.log")
            return status, verdict


def _follow(watch: Watch, run: RunFolder, follower: Follower, unit: str) -> tuple[Status, int]:
    """Show the run's status until it ends; return the last one, and the signal that asked for the end or 0.

    Ctrl-C lets it end after the current `unit`, a second one at once; SIGTERM and SIGHUP wait for it only briefly.
    """
    from psl_flower.launch.signals import Terminated

    asked: KeyboardInterrupt | None = None
    deadline = math.inf
    while True:
        try:
            status, over = watch.poll()
            if status is None:
                follower.waiting(_STARTING, watch.awaited)
            else:
                follower.follow(status, run)
                # Nothing is lost with processes that have yet to end, and the sender of SIGTERM does not wait for them.
                if over or (status.ended and isinstance(asked, Terminated)):
                    return status, 0 if asked is None else _number(asked)
            time.sleep(_POLL_S)
        except KeyboardInterrupt as interrupt:
            if asked is not None or not run.path.exists():
                raise
            asked = interrupt
            try:
                run.request_stop()
            except RunError as error:
                follower.notice(f"{error}; the run ends at once")
                raise interrupt from error
            if isinstance(interrupt, Terminated):
                deadline = time.monotonic() + _GRACE_S
                follower.notice(f"{interrupt}: stopping after this {unit}; at once in {_GRACE_S:g} s")
            else:
                follower.notice(f"stopping after this {unit}; Ctrl-C again ends the run at once")
        if asked is not None and time.monotonic() > deadline:
            raise asked


def _number(interrupt: KeyboardInterrupt) -> int:
    """Return the number of the signal behind an interruption."""
    return int(getattr(interrupt, "number", signal.SIGINT))


def _report(ending: _Ending, as_json: bool, seconds: float | None = None) -> None:
    """Print how a run ended; with `seconds`, for a person at a terminal, as a table."""
    run, status, problem = ending.run, ending.status, _failure(ending)
    done = problem is None
    if as_json:
        report = {
            "run": run.name,
            "folder": str(run.path),
            "state": status.state if done or status.state != "completed" else "failed",
            "message": status.message,
            "step": status.step,
            "accuracy": status.accuracy,
            "model": str(run.model) if done and run.has_model else None,
        }
        say(json.dumps(report))
    elif done and seconds is not None and sys.stdout.isatty():
        for line in closing_lines(run, status, seconds):
            say(line)
    elif done:
        say(status.message)
    if problem is not None:
        _end_undone(ending, problem, quiet=as_json)


def completed(given: dict[str, object], kind: Kind, nodes: int) -> RunFolder:
    """Let a run go to its end, as `run_to_end`, and return its folder; raises RunError unless it has completed."""
    ending = run_to_end(given, kind, nodes=nodes)
    if (problem := _failure(ending)) is not None:
        _end_undone(ending, problem)
    return ending.run


def _end_undone(ending: _Ending, problem: RunError, *, quiet: bool = False) -> NoReturn:
    """Report a run that was stopped, and exit: as after the signal, or with 1 if the file "stop" asked for it.

    One that failed after a signal exits so too; without a signal its `problem` is raised. `quiet` leaves out the
    message of a stopped run.
    """
    stopped = ending.status.state == "stopped"
    if not stopped and not ending.signalled:
        raise problem
    if not (stopped and quiet):
        say(ending.status.message if stopped else f"error: {problem}", err=True)
    raise typer.Exit(_SIGNALLED + ending.signalled if ending.signalled else 1)


def _failure(ending: _Ending) -> RunError | None:
    """Return why a run has not completed; None if it has."""
    run, status, verdict = ending.run, ending.status, ending.verdict
    message = status.message.removeprefix("error: ")
    if status.state == "completed":
        if verdict.endswith("completed"):
            return None
        message = f"the run's work is done, but Flower reports {verdict}"
    log = run.path / "flower.log"
    return RunError(message + (f" (Flower's log: {log})" if log.is_file() else ""))
