"""Messages about a run to an experiment tracker, and how MLflow and Weights & Biases record them.

This module is also the program that records them, `python -m psl_flower.runs.trackers`: a separate process, started by
`psl_flower.runs.tracking`, that reads messages from its standard input, one JSON object a line. So a tracker that is
slow, fails or hangs holds up no training. An error is written to its standard output, in one line.

A run's id with the tracker follows from that of its folder, so a resumed run continues the same one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Protocol

import msgspec

PROJECT = "psl-flower"
_RUN_TAG = "psl.run"
# How a run ended -> MLflow's word for it.
_MLFLOW_STATES = {"completed": "FINISHED", "failed": "FAILED"}
# Telemetry of the libraries.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_ERROR_REPORTING": "false"}


class Begin(msgspec.Struct, tag="begin", frozen=True, kw_only=True):
    """A run begins, or is continued."""

    tracker: str  #: "mlflow" or "wandb".
    uri: str  #: Address of the tracker; empty: files in `folder`.
    folder: str  #: Folder of the tracker's files on this machine.
    #: The run's name, and its id, which no other run has.
    name: str
    identity: str
    settings: dict[str, str]


class Metrics(msgspec.Struct, tag="metrics", frozen=True, kw_only=True):
    """Numbers after a step."""

    step: int
    values: dict[str, float]


class End(msgspec.Struct, tag="end", frozen=True, kw_only=True):
    """The run has ended."""

    state: str  #: "completed", "stopped" or "failed".
    values: dict[str, float]  #: Its last metrics.
    model: str = ""  #: Path of the model's file; empty without a model.


Message = Begin | Metrics | End


class Tracker(Protocol):
    """One run with a tracker; every method may raise whatever the tracker's library raises."""

    def log(self, metrics: Metrics) -> None:
        """Add numbers of a step."""
        ...

    def end(self, end: End) -> None:
        """Add how the run ended, and send everything not sent yet."""
        ...


class MLflow:
    """A run with MLflow: in a database in the folder, or with a server."""

    def __init__(self, begin: Begin) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder = Path(begin.folder)
        uri = begin.uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(PROJECT)
        if known is None:
            # Without it a folder would be made wherever this process runs.
            place = None if begin.uri else (folder / "artifacts").as_uri()
            experiment = self._client.create_experiment(PROJECT, artifact_location=place)
        else:
            experiment = known.experiment_id
        earlier = self._client.search_runs([experiment], f"tags.\"{_RUN_TAG}\" = '{begin.identity}'", max_results=1)
        if earlier:
            self._id, noted = earlier[0].info.run_id, earlier[0].data.params
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {_RUN_TAG: begin.identity}
            self._id, noted = self._client.create_run(experiment, run_name=begin.name, tags=tags).info.run_id, {}
        # A parameter cannot be changed: what a continued run does otherwise is a tag.
        new = [Param(key, value) for key, value in begin.settings.items() if key not in noted]
        self._client.log_batch(self._id, params=new)
        for key, value in begin.settings.items():
            if noted.get(key, value) != value:
                self._client.set_tag(self._id, f"continued.{key}", value)

    def log(self, metrics: Metrics) -> None:
        """See `Tracker`."""
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = [Metric(name, value, now, metrics.step) for name, value in metrics.values.items()]
        self._client.log_batch(self._id, metrics=values)

    def end(self, end: End) -> None:
        """See `Tracker`."""
        for name, value in end.values.items():
            self._client.log_metric(self._id, f"final_{name}", value)
        for name, text in {"psl.state": end.state, "psl.model": end.model}.items():
            if text:
                self._client.set_tag(self._id, name, text)
        self._client.set_terminated(self._id, status=_MLFLOW_STATES.get(end.state, "KILLED"))


class WeightsAndBiases:
    """A run with Weights & Biases: in files that `wandb sync` sends later, or with a server."""

    def __init__(self, begin: Begin) -> None:
        import hashlib

        import wandb

        self._library: Any = wandb
        # Its own account of the machine, the code and the terminal stays here.
        quiet: dict[str, Any] = {
            "console": "off", "silent": True, "disable_git": True, "disable_code": True, "x_disable_meta": True,
            "x_disable_stats": True, "x_save_requirements": False,
        }  # fmt: skip
        if begin.uri:
            quiet["base_url"] = begin.uri
        self._id = hashlib.sha256(begin.identity.encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=PROJECT, id=self._id, name=begin.name, resume="allow", dir=begin.folder, config=begin.settings,
            mode="online" if begin.uri else "offline", settings=wandb.Settings(**quiet), allow_val_change=True,
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Metrics) -> None:
        """See `Tracker`."""
        self._run.log({**metrics.values, "step": metrics.step})

    def end(self, end: End) -> None:
        """See `Tracker`."""
        self._run.summary.update({f"final_{name}": value for name, value in end.values.items()})
        self._run.summary.update({"state": end.state, "model": end.model})
        if end.model:
            # A name of where it is: the file itself stays.
            artifact = self._library.Artifact(f"model-{self._id}", type="model")
            artifact.add_reference(Path(end.model).as_uri(), checksum=False)
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=int(end.state != "completed"))


TRACKERS: dict[str, type[MLflow] | type[WeightsAndBiases]] = {"mlflow": MLflow, "wandb": WeightsAndBiases}


def follow(lines: Any) -> None:
    """Record the messages of these lines; a run without a last message was killed."""
    tracker: Tracker | None = None
    decoder = msgspec.json.Decoder(Message)
    for line in lines:
        message = decoder.decode(line)
        if isinstance(message, Begin):
            tracker = TRACKERS[message.tracker](message)
        elif isinstance(message, Metrics):
            assert tracker is not None
            tracker.log(message)
        else:
            assert tracker is not None
            tracker.end(message)
            return
    if tracker is not None:
        tracker.end(End(state="killed", values={}))


def main() -> int:
    """Follow the standard input; return 1 after a line on what has failed."""
    os.nice(10)
    os.environ.update(_QUIET)
    # The libraries print, too.
    said = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    try:
        follow(sys.stdin.buffer)
    except Exception as error:  # of any library; the run continues without its tracker
        words = " ".join(str(error).split())
        print(f"{type(error).__name__}: {words}"[:500], file=said, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
