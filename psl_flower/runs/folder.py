"""The folder of a run: settings, metrics, status, checkpoints, predictions and the trained model.

Everything of a run is in <workspace>/runs/<name>/:

- config.toml, id: settings of the run; random digits by which nodes tell this run from others
- manifest.json, account.json: what the stores were, without anything of the images; which images were read and left out
- status.json: the run's progress, rewritten during the run; see `Status`
- metrics.jsonl: one object per round
- log.txt: the lines that the user saw
- tensorboard/: the metrics as event files, and loss and times of every step
- checkpoints/: the Lower's; the newest is the committed one; nodes/: in a simulation, the Uppers'
- looks/: what frozen Uppers have sent of every image, if that is kept (`psl_flower.engine.looks`)
- predictions.npz and .csv: the last evaluation: sample, label, predicted, confidence, split
- predictions/<name>/: later predictions with the run's model where it lies, see `psl_flower.runs.predictions`
- model/: the assembled network, if the owner asked for it
- lock: held by the process that works on the run, see `psl_flower.runs.claim`
- stop: made to ask the run to end after the current step
"""

from __future__ import annotations

import io
import itertools
import os
import secrets
import socket
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import psutil
import tomli_w

from psl_flower.config import RunConfig, Value
from psl_flower.data.account import FILE as ACCOUNT_FILE
from psl_flower.data.account import Account
from psl_flower.errors import ConfigError, RunError
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.metrics_file import read_metrics
from psl_flower.system.files import disk_errors, read_file, write_file
from psl_flower.system.folders import make_private_folder, remove_leftovers, step_files
from psl_flower.system.records import append_record
from psl_flower.text import did_you_mean, printable, slug

if TYPE_CHECKING:
    from psl_flower.engine.checkpoints import Checkpoints
    from psl_flower.engine.rounds import Predictions

MODEL_FILE = "model.safetensors"
LOG_FILE = "log.txt"
CONFIG_FILE = "config.toml"
PREDICTIONS_FILE = "predictions.npz"
_MANIFEST_FILE, _METRICS_FILE, _STATUS_FILE = "manifest.json", "metrics.jsonl", "status.json"
_INSTEAD = "instead"  # a table in config.toml
# Settings that earlier versions noted in config.toml in addition to those of a training.
_NOT_OF_TRAINING = {
    "resume", "restore", "predict", "predict-split", "predict-images", "predict-without", "predict-light", "lighten",
    "lighten-with",
}  # fmt: skip
Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]  # within the years that dates can show


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Progress and state of a run."""

    #: "preparing" (stores), "starting" (nodes), "training", "collecting" (the model); "predicting" in place of the last
    #: two; of a lightening also "judging" and "quantising"; at the end "completed", "stopped" or "failed".
    state: str
    message: str = ""  #: One line for a person: the current activity, or why the run ended and what to do.
    #: Current round and step (steps applied), with their totals.
    round: int = 0
    rounds: int = 0
    step: int = 0
    total_steps: int = 0
    #: Progress of a prediction; 0 in training.
    images: int = 0
    total_images: int = 0
    loss: float | None = None  #: Full loss, mean over the steps since the last report.
    accuracy: float | None = None  #: Accuracy of the last evaluation, 0..1.
    images_per_s: float | None = None  #: Rate of training in this round, or of prediction.
    eta_s: float | None = None  #: Seconds left, estimated.
    run_id: str = ""  #: Flower's id of the run.
    process: str = ""  #: The process that writes this, as "HOST:PID"; empty if unknown.
    updated: Moment = 0.0  #: Unix time.

    @property
    def shown(self) -> str:
        """The state, or "died" where the process is gone: such a run would else train for ever."""
        return "died" if self.died else self.state

    @property
    def reason(self) -> str:
        """Why the run has failed, in one line; empty if it has not."""
        if self.state == "failed":
            return self.message.removeprefix("error: ")
        if self.died:
            last = f"; it was {self.state}" + (f": {self.message}" if self.message else "")
            return f"its process was killed, or the machine restarted{last}"
        return ""

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ("completed", "stopped", "failed")

    @property
    def died(self) -> bool:
        """Whether the process that wrote this died before the run ended; only known on its host."""
        host, _, pid = self.process.rpartition(":")
        if self.ended or host != socket.gethostname():
            return False
        try:
            process = psutil.Process(int(pid))
            # A zombie is dead, though Flower may not ask for its status for hours; a later one only has its number.
            return bool(process.status() == psutil.STATUS_ZOMBIE or process.create_time() > self.updated)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


def this_process() -> str:
    """Return this process as `Status.process` names it."""
    return f"{socket.gethostname()}:{os.getpid()}"


class RunFolder:
    """One run's folder, <workspace>/runs/<name>."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Checkpoints:
        """The Lower's checkpoints."""
        from psl_flower.engine.checkpoints import Checkpoints  # loads torch, which takes seconds

        return Checkpoints(self.path / "checkpoints")

    @property
    def model(self) -> Path:
        """Folder of the assembled network."""
        return self.path / "model"

    @property
    def has_model(self) -> bool:
        """Whether the assembled network was written."""
        return (self.model / MODEL_FILE).is_file()

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def identity(self) -> str:
        """The run's name with a unique id, so that a node never takes another run's state for this one's.

        Raises
        ------
        RunError
            If the disk refuses to keep the id, which is made when it is first asked for.
        """
        path = self.path / "id"
        if not path.exists():
            self._write("id", secrets.token_hex(8).encode())
        return f"{self.name}-{path.read_text('ascii')}"

    @property
    def looks(self) -> Path:
        """Folder of what frozen Uppers have sent of every image."""
        return self.path / "looks"

    @property
    def nodes(self) -> Path:
        """In a simulation: folder of the Uppers' checkpoints."""
        return self.path / "nodes"

    def stop_requested(self) -> bool:
        """Whether the run was asked to end."""
        return (self.path / "stop").exists()

    def request_stop(self) -> None:
        """Ask the run to end after the current step; raises RunError if the disk refuses."""
        path = self.path / "stop"
        with disk_errors(path, "written", RunError):
            path.touch()

    def forget_stop(self) -> None:
        """Take the request back, as a resumed run does."""
        (self.path / "stop").unlink(missing_ok=True)

    def write_config(self, config: RunConfig, instead: Mapping[str, Value] | None = None) -> None:
        """Write config.toml; `instead` are settings of another kind of run than a training.

        Raises
        ------
        RunError
            If the disk refuses.
        """
        table = {_INSTEAD: dict(instead)} if instead else {}
        self._write(CONFIG_FILE, tomli_w.dumps(config.to_mapping() | table).encode())

    def read_config(self) -> RunConfig:
        """Read the settings of a training in config.toml; raises RunError if it is missing or damaged."""
        noted = self._read_settings()
        try:
            return RunConfig.from_mapping(
                {key: value for key, value in noted.items() if key not in {_INSTEAD, *_NOT_OF_TRAINING}}
            )
        except ConfigError as error:
            raise RunError(f"{self.path / CONFIG_FILE}: damaged: {error}") from error

    @property
    def instead(self) -> str:
        """The setting that made the run do something else than train; empty if it trains. Raises as `read_config`."""
        noted = self._read_settings()
        return next(iter(noted.get(_INSTEAD, {})), "restore" if noted.get("restore") else "")

    @property
    def has_checkpoint(self) -> bool:
        """Whether the Lower has written a checkpoint; loads no torch."""
        return bool(step_files(self.path / "checkpoints"))

    def _read_settings(self) -> dict[str, Any]:
        path = self.path / CONFIG_FILE
        try:
            return tomllib.loads(read_file(path, RunError).decode())
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: damaged: {error}") from error

    def write_status(self, status: Status) -> None:
        """Replace status.json atomically."""
        stamped = msgspec.structs.replace(status, updated=time.time())
        self._write(_STATUS_FILE, msgspec.json.encode(stamped), durable=status.ended)

    def append_log(self, level: str, line: str) -> None:
        """Append a line to log.txt, as the ServerApp's logger does; raises RunError if the disk refuses."""
        path = self.path / LOG_FILE
        with disk_errors(path, "written", RunError), path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 {level} {printable(line)}\n")

    def read_status(self) -> Status | None:
        """Return the status; None if the run has not written one."""
        try:
            return msgspec.json.decode((self.path / _STATUS_FILE).read_bytes(), type=Status)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one round to metrics.jsonl; raises RunError if the disk refuses."""
        append_record(self.path / _METRICS_FILE, dict(metrics), RunError)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all rounds of metrics.jsonl; see `psl_flower.runs.metrics_file`."""
        return read_metrics(self.path / _METRICS_FILE)

    def drop_metrics_after(self, step: int) -> None:
        """Remove rounds beyond a step, which a resumed run repeats."""
        kept = [metrics for metrics in self.read_metrics() if metrics["step"] <= step]
        self._write(_METRICS_FILE, b"".join(msgspec.json.encode(metrics) + b"\n" for metrics in kept))

    def write_predictions(self, predictions: Predictions, split: str | Sequence[str] = "test") -> None:
        """Write predictions.npz; see `psl_flower.engine.rounds.Predictions` for its arrays.

        `split` is that of all images, or of each.

        Raises
        ------
        RunError
            If the disk refuses.
        """
        file = io.BytesIO()
        np.savez(
            file, sample=predictions.sample, label=predictions.label, predicted=predictions.predicted,
            confidence=predictions.confidence, split=np.broadcast_to(np.asarray(split), len(predictions.sample)),
        )  # fmt: skip
        self._write(PREDICTIONS_FILE, file.getvalue())

    def write_description(self, description: StoreSetDescription) -> None:
        """Write manifest.json."""
        description.save(self.path / _MANIFEST_FILE)

    def write_account(self, account: Account | None) -> None:
        """Write account.json: what was read for the run's stores; raises StoreError if the disk refuses."""
        if account is not None:
            account.save(self.path / ACCOUNT_FILE)

    def read_account(self) -> Account | None:
        """Return the account of the run's dataset, if there is one; raises StoreError if it is damaged."""
        return Account.load(self.path / ACCOUNT_FILE)

    @property
    def has_description(self) -> bool:
        """Whether the run has opened its stores."""
        return (self.path / _MANIFEST_FILE).exists()

    def read_description(self) -> StoreSetDescription:
        """Read manifest.json; raises StoreError if it is missing or damaged."""
        return StoreSetDescription.load(self.path / _MANIFEST_FILE)

    def _write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        write_file(self.path / name, content, RunError, durable=durable)


def create_run(workspace: Path, name: str, dataset: str) -> RunFolder:
    """Make the folder of a new run, for this user alone; without a name, one of the dataset and the time.

    Raises
    ------
    RunError
        If there is a run of this name already, or the disk refuses.
    """
    runs = workspace / "runs"
    with disk_errors(runs, "made", RunError, advice="set workspace"):
        make_private_folder(runs)
        while True:
            path = runs / free_name(workspace, name, dataset)
            try:
                path.mkdir(mode=0o700)
                return RunFolder(path)
            except FileExistsError:
                continue  # another run has just taken it


def free_name(workspace: Path, name: str, dataset: str) -> str:
    """Return the name of a new run: the one given, or one of the dataset and the time that is not taken.

    Raises
    ------
    RunError
        If the name given is taken.
    """
    runs = workspace / "runs"
    if name:
        if (runs / name).exists():
            raise RunError(
                f"{runs / name}: there is a run of this name already; choose another run-name, "
                f'or continue it with resume="{name}"'
            )
        return name
    return name_by_time(runs, slug(Path(dataset).name, 40) or "run")


def name_by_time(folder: Path, what: str) -> str:
    """Return `what` with the time, and a number where the folder has something of that name already."""
    stem = f"{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in candidates if not (folder / candidate).exists())


def open_run(workspace: Path, name: str) -> RunFolder:
    """Return the folder of an existing run; what a killed process left half written there is removed.

    Raises
    ------
    RunError
        If there is no such run; the message names those that exist.
    """
    path = workspace / "runs" / name
    if not os.path.isfile(path / CONFIG_FILE):
        known = [run.name for run in list_runs(workspace)]
        raise RunError(f"{path}: no such run{did_you_mean(name, known)} (there: {', '.join(known) or 'none'})")
    remove_leftovers(path)
    return RunFolder(path)


def list_runs(workspace: Path) -> list[RunFolder]:
    """Return all runs of a workspace, oldest first; raises RunError if this user has no access to it."""
    runs = workspace / "runs"
    with disk_errors(runs, "listed", RunError):
        configs = sorted(runs.glob("*/config.toml"), key=lambda path: path.stat().st_mtime)
    return [RunFolder(path.parent) for path in configs]
