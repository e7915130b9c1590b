"""The command `psl train`: `flwr run` with fitting settings, a progress bar and a true exit status."""

from __future__ import annotations

import json
import shutil
import sys
import time
import tomllib
from typing import TYPE_CHECKING, Annotated

import typer

from psl_flower.cli.output import Json
from psl_flower.errors import ConfigError, RunError

if TYPE_CHECKING:
    from psl_flower.cli.follow import Follower
    from psl_flower.config import RunConfig
    from psl_flower.launch.running import Watch
    from psl_flower.launch.superlink import LocalSuperLink
    from psl_flower.runs import RunFolder, Status

_POLL_S = 0.3


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train")(train)


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="KEY=VALUE, as in pyproject.toml: dataset=digits rounds=5 patch-size=8x8", metavar="KEY=VALUE"
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="Simulated nodes; 0: what fits the grid and this machine.")] = 0,
    retries: Annotated[
        int, typer.Option(min=0, help="So often go on by itself from the last checkpoint if the run fails.")
    ] = 0,
    app: Annotated[str, typer.Option("--app", help="Folder of the Flower app [this installation's].")] = "",
    as_json: Json = False,
) -> None:
    """Train in a simulation on this machine: makes the patch stores, starts Flower, shows how it goes.

    Ctrl-C ends the run after the current step, with a checkpoint; a second one ends it at once.
    """
    from psl_flower.config import RunConfig

    try:
        given = parse_settings(settings or [])
        config = RunConfig.from_mapping(given)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    run, status, verdict = run_to_end(given, config, nodes=nodes, retries=retries, app=app)
    _report(run, status, verdict, as_json)


def run_to_end(
    given: dict[str, object], config: RunConfig, *, nodes: int = 0, retries: int = 0, app: str = ""
) -> tuple[RunFolder, Status, str]:
    """Start Flower and a run, and show how it goes; return its folder, its last status, and how Flower ended it.

    Parameters
    ----------
    given : dict
        The settings to pass on, by their kebab-case keys.
    config : RunConfig
        The same settings, parsed.
    nodes : int
        Simulated nodes; 0 for what fits.
    retries : int
        So often go on from the last checkpoint if the run fails.
    app : str
        Folder of the Flower app; empty for this installation's.

    Raises
    ------
    PslError
        If it cannot be started.
    """
    from psl_flower.cli.follow import Follower
    from psl_flower.launch.running import Watch, app_folder, prepare, start
    from psl_flower.launch.superlink import LocalSuperLink
    from psl_flower.machine import forbid_core_dumps

    folder = app_folder(app)
    forbid_core_dumps()  # stores are sealed here
    while True:
        # A SuperLink for every attempt: what made the last one fail may be a part of it.
        with LocalSuperLink() as superlink, Follower(sys.stderr) as follower:
            num_uppers, run = prepare(config, follower.ingesting, follower.note)
            follower.say("starting Flower")
            superlink.wait()
            watch = Watch(superlink, run)
            run_id = start(superlink, folder, given, config, run, num_uppers, nodes)
            status = _follow(watch, run, follower, "batch" if config.predict else "step, with a checkpoint")
            verdict = superlink.status(run_id) if status.state == "completed" else ""
            completed = status.state == "completed" and verdict.endswith("completed")
            if not completed:
                _keep_log(superlink, run)
            if completed or status.state == "stopped" or retries == 0 or not run.checkpoints.steps():
                return run, status, verdict
            retries -= 1
            follower.say(f"{status.message}; going on by itself, {retries} retries left")
        given, config = _resuming(given, config, run)


def _resuming(given: dict[str, object], config: RunConfig, run: RunFolder) -> tuple[dict[str, object], RunConfig]:
    """Return the settings that continue a run."""
    rest = {key: value for key, value in given.items() if key != "run-name"}
    return {**rest, "resume": run.name}, config.replace(run_name="", resume=run.name)


def parse_settings(settings: list[str]) -> dict[str, object]:
    """Return KEY=VALUE arguments as a flat mapping, each value read by its setting's type.

    Raises
    ------
    ConfigError
        If an argument is not KEY=VALUE, a key comes twice, or a value cannot be read.
    """
    from psl_flower.config import RunConfig

    default = RunConfig().to_mapping()
    values: dict[str, object] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise ConfigError(f"expected KEY=VALUE, got {setting!r}")
        if key in values:
            raise ConfigError(f"{key} is given twice")
        values[key] = _value(text, default.get(key, ""))
    return values


def _value(text: str, default: object) -> object:
    """Read a value: a text needs no quotes, since the setting's type is known."""
    if isinstance(default, str):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return text[1:-1] if quoted else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _follow(watch: Watch, run: RunFolder, follower: Follower, unit: str) -> Status:
    """Show the run's status until it ends; return the last one. Ctrl-C lets it end after the current `unit`."""
    interrupted = False
    while True:
        try:
            status, over = watch.look()
            if status is not None:
                follower.show(status, run)
                if over:
                    return status
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            if interrupted or not run.path.exists():
                raise
            interrupted = True
            run.request_stop()
            follower.say(f"stopping after this {unit}; Ctrl-C again ends the run at once")


def _keep_log(superlink: LocalSuperLink, run: RunFolder) -> None:
    if run.path.is_dir():
        shutil.copyfile(superlink.log, run.path / "flower.log")


def _report(run: RunFolder, status: Status, verdict: str, as_json: bool) -> None:
    problem = failure(run, status, verdict)
    completed = problem is None
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "run": run.name,
                    "folder": str(run.path),
                    "state": status.state if completed or status.state != "completed" else "failed",
                    "message": status.message,
                    "step": status.step,
                    "accuracy": status.accuracy,
                    "model": str(run.model) if completed and run.model.exists() else None,
                }
            )
        )
    elif completed:
        typer.echo(status.message)
    if problem is not None:
        raise problem


def failure(run: RunFolder, status: Status, verdict: str) -> RunError | None:
    """Return why a run has not completed; None if it has."""
    message = status.message.removeprefix("error: ")
    if status.state == "completed":
        if verdict.endswith("completed"):
            return None
        message = f"the run's work is done, but Flower reports {verdict}"
    return RunError(message + (f" (Flower's log: {run.path / 'flower.log'})" if run.path.is_dir() else ""))
