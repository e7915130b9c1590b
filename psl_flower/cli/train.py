"""The command `psl train`: `flwr run` with fitting settings, a progress bar and a true exit status."""

from __future__ import annotations

import json
import shutil
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psl_flower.cli.output import Json
from psl_flower.errors import ConfigError, RunError

if TYPE_CHECKING:
    from psl_flower.cli.follow import Follower
    from psl_flower.config import RunConfig
    from psl_flower.launch.superlink import LocalSuperLink
    from psl_flower.runs import RunFolder, Status

_POLL_S = 0.3
_START_TIMEOUT_S = 180.0


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train")(train)


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE, as in pyproject.toml: dataset=digits rounds=5 patch-size=8x8", metavar="KEY=VALUE"),
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="Simulated nodes; 0: what fits the grid and this machine.")] = 0,
    app: Annotated[str, typer.Option("--app", help="Folder of the Flower app [this installation's].")] = "",
    as_json: Json = False,
) -> None:
    """Train in a simulation on this machine: makes the patch stores, starts Flower, shows how it goes.

    Ctrl-C ends the run after the current step, with a checkpoint; a second one ends it at once.
    """
    from psl_flower.cli.follow import Follower
    from psl_flower.config import RunConfig
    from psl_flower.launch.superlink import LocalSuperLink

    try:
        given = parse_settings(settings or [])
        config = RunConfig.from_mapping(given)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    folder = _app_folder(app)
    with LocalSuperLink() as superlink, Follower(sys.stderr) as follower:
        num_uppers, run = _prepare(config, follower)
        follower.say("starting Flower")
        superlink.wait()
        started = time.time()
        run_id = superlink.run(folder, _run_config(given, config, run), _federation(num_uppers, nodes))
        status = _follow(superlink, run, started, follower)
        verdict = superlink.status(run_id) if status.state == "completed" else ""
        if status.state != "completed" or not verdict.endswith("completed"):
            _keep_log(superlink, run)
    _report(run, status, verdict, as_json)


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


def _app_folder(given: str) -> Path:
    """Return the folder of the Flower app: the one given, or that of this installation."""
    import psl_flower

    folder = Path(given).expanduser().absolute() if given else Path(psl_flower.__file__).parents[1]
    if not (folder / "pyproject.toml").is_file():
        raise RunError(f"{folder}: no Flower app here (no pyproject.toml); give its folder with --app")
    return folder


def _prepare(config: RunConfig, follower: Follower) -> tuple[int, RunFolder]:
    """Make the patch stores if they are missing, and choose the run's folder; nothing is started for bad input."""
    from psl_flower.data.ingest import ensure_stores
    from psl_flower.data.store_set import store_request
    from psl_flower.runs import RunFolder, free_name, open_run

    workspace = config.workspace_path()
    if config.resume:
        run = open_run(workspace, config.resume)
        config = run.read_config().replace(workspace=str(workspace))
    else:
        run = RunFolder(workspace / "runs" / free_name(workspace, config.run_name, config.dataset))
    stores = ensure_stores(workspace / "stores", store_request(config), follower.ingesting)
    return stores.manifest.num_uppers, run


def _run_config(given: dict[str, object], config: RunConfig, run: RunFolder) -> dict[str, object]:
    """Return what `flwr run` is told: the ServerApp runs elsewhere, so paths and the run's name are spelled out."""
    dataset = Path(config.dataset).expanduser()
    named = {} if config.resume else {"run-name": run.name}
    local = {"dataset": str(dataset.absolute())} if "dataset" in given and dataset.exists() else {}
    return {**given, **named, **local, "workspace": str(config.workspace_path())}


def _federation(num_uppers: int, nodes: int) -> dict[str, int | float]:
    from psl_flower.devices import usable_cores
    from psl_flower.launch.federation import count_gpus, simulation

    return simulation(num_uppers, usable_cores(), count_gpus(), nodes)


def _follow(superlink: LocalSuperLink, run: RunFolder, started: float, follower: Follower) -> Status:
    """Show the run's status until it ends; return the last one."""
    from psl_flower.runs import Status

    interrupted, seen_running = False, False
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            status = run.read_status()
            status = status if status is not None and status.updated >= started else None
            running = superlink.is_running()
            seen_running = seen_running or running
            if status is not None:
                follower.show(status, run)
                if status.ended and not running:
                    return status
            if not running and (seen_running or time.monotonic() > deadline):
                # It may have ended between the two looks.
                last = run.read_status()
                if last is not None and last.updated >= started and last.ended:
                    return last
                return Status(state="failed", message=f"error: the run's process ended: {superlink.last_words()}")
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            if interrupted or not run.path.exists():
                raise
            interrupted = True
            run.request_stop()
            follower.say("stopping after this step, with a checkpoint; Ctrl-C again ends the run at once")


def _keep_log(superlink: LocalSuperLink, run: RunFolder) -> None:
    if run.path.is_dir():
        shutil.copyfile(superlink.log, run.path / "flower.log")


def _report(run: RunFolder, status: Status, verdict: str, as_json: bool) -> None:
    completed = status.state == "completed" and verdict.endswith("completed")
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
    if not completed:
        message = status.message.removeprefix("error: ")
        if status.state == "completed":
            message = f"the run's work is done, but Flower reports {verdict}"
        raise RunError(f"{message}" + (f" (Flower's log: {run.path / 'flower.log'})" if run.path.is_dir() else ""))
