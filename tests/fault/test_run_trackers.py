"""A run with an experiment tracker: one tracker run for it however often it is resumed, and none that disturbs it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psl_flower.engine.lower import LowerEngine
from psl_flower.errors import ConfigError, TrainingStopped
from psl_flower.runs import tracking
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.store_set import StoreSet
from tests.fault.sealed_run import exact, log_of, train
from tests.in_process import InProcessGrid

SECRET = "never-in-a-folder-of-a-run"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the trackers find credentials, and no settings of who runs the tests."""
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def kept(place: Path) -> bytes:
    """Return all that lies in a folder."""
    return b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())


def stopped_at(step: int, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = LowerEngine.train_step

    def stopping(self: LowerEngine, *args: Any, **kwargs: Any) -> Any:
        if self.step == step:
            run.request_stop()
        return train_step(self, *args, **kwargs)

    monkeypatch.setattr(LowerEngine, "train_step", stopping)


def test_mlflow_has_one_run_for_a_run_that_was_stopped_and_resumed(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="extra mlflow is not installed")
    run = RunFolder(tmp_path / "runs" / "run")
    with monkeypatch.context() as patch:
        stopped_at(4, run, patch)
        with pytest.raises(TrainingStopped):
            train(nodes, tmp_path, tracker="mlflow", evaluate_every=1)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("psl-flower").experiment_id
    (first,) = client.search_runs([experiment])
    assert (first.info.status, first.data.tags["psl.state"], first.info.run_name) == ("KILLED", "stopped", "run")
    assert [point.step for point in client.get_metric_history(first.info.run_id, "loss")] == [3]
    nodes.serve(resume="run", workspace=str(tmp_path))
    (found,) = client.search_runs([experiment])
    assert (found.info.run_id, found.info.status) == (first.info.run_id, "FINISHED")
    metrics = {int(line["step"]): line for line in run.read_metrics()}
    for name in ("loss", "accuracy", "bytes_up"):
        points = client.get_metric_history(found.info.run_id, name)
        assert {point.step: point.value for point in points} == {step: line[name] for step, line in metrics.items()}
    assert found.data.metrics["final_accuracy"] == metrics[6]["accuracy"]
    assert found.data.params["lr"] == str(run.read_config().training.lr) and found.data.params["dataset"] == "digits"
    assert not {"keys", "workspace", "owner", "exchange-key"} & found.data.params.keys()
    assert found.data.tags["psl.model"] == str(run.model / "model.safetensors")
    assert exact(run, stores)
    assert SECRET.encode() not in kept(run.path) + kept(tmp_path / "mlflow")
    assert (tmp_path / "mlflow").stat().st_mode & 0o077 == 0
    assert log_of(tmp_path).count("tracker: mlflow, ") == 2


def test_weights_and_biases_offline_has_one_id_for_a_run_that_was_stopped_and_resumed(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="extra wandb is not installed")
    run = RunFolder(tmp_path / "runs" / "run")
    with monkeypatch.context() as patch:
        stopped_at(4, run, patch)
        with pytest.raises(TrainingStopped):
            train(nodes, tmp_path, tracker="wandb", evaluate_every=1)
    nodes.serve(resume="run", workspace=str(tmp_path))
    first, second = (read_offline(path) for path in sorted((tmp_path / "wandb").rglob("run-*.wandb")))
    assert first["id"] == second["id"] and first["name"] == "run"
    metrics = {int(line["step"]): line for line in run.read_metrics()}
    for found, step in ((first, 3), (second, 6)):
        assert found["history"]["loss"] == {step: metrics[step]["loss"]}
        assert found["history"]["accuracy"] == {step: metrics[step]["accuracy"]}
        assert found["config"]["dataset"] == "digits" and "keys" not in found["config"]
    assert (first["exit"], second["exit"]) == (1, 0)
    assert second["summary"]["final_accuracy"] == metrics[6]["accuracy"]
    assert second["summary"]["model"] == str(run.model / "model.safetensors")
    assert second["references"] == [(run.model / "model.safetensors").as_uri()]
    assert exact(run, stores)
    everything = kept(run.path) + kept(tmp_path / "wandb")
    assert SECRET.encode() not in everything and (run.model / "model.safetensors").read_bytes() not in kept(
        tmp_path / "wandb"
    )


def read_offline(path: Path) -> dict[str, Any]:
    """Return what a file of an offline run of Weights & Biases holds."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), {"history": {}, "summary": {}, "config": {}, "references": [], "exit": None}
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "name": record.run.display_name}
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            line = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            for name, value in line.items():
                found["history"].setdefault(name, {})[line["step"]] = value
        elif kind == "summary":
            found["summary"] |= {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.summary.update
            }
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind == "artifact":
            found["references"] += [entry.ref for entry in record.artifact.manifest.contents]
    return found


# --- trackers that fail


def test_a_tracker_that_cannot_be_reached_is_said_once_and_changes_nothing(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="extra mlflow is not installed")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://127.0.0.1:{sock.getsockname()[1]}"
        run = train(nodes, tmp_path, tracker="mlflow", tracker_uri=uri)
    status = run.read_status()
    assert status is not None and status.state == "completed" and exact(run, stores)
    assert log_of(tmp_path).count("mlflow misses records") <= 1
    assert log_of(tmp_path).splitlines()[-1].endswith(status.message)


@pytest.fixture
def silent() -> Iterator[str]:
    """Return the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracker_that_hangs_holds_up_nothing(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="extra mlflow is not installed")
    monkeypatch.setattr("psl_flower.runs.tracking.PATIENCE_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    took: list[float] = []
    for method in ("metrics", "end"):
        told = getattr(tracking.Tracking, method)

        def timed(*args: Any, told: Any = told) -> None:
            began = time.monotonic()
            told(*args)
            took.append(time.monotonic() - began)

        monkeypatch.setattr(tracking.Tracking, method, timed)
    run = train(nodes, tmp_path, tracker="mlflow", tracker_uri=silent)
    assert len(took) == 3 and max(took) < 0.5
    status = run.read_status()
    assert status is not None and status.state == "completed" and exact(run, stores)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(
    nodes: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psl_flower.runs.tracking.importlib.util.find_spec", lambda name: None)
    asked: list[Any] = []
    nodes.on_message = asked.append
    with pytest.raises(ConfigError, match=r"tracker=wandb needs wandb.*pip install 'psl-flower\[wandb\]'"):
        train(nodes, tmp_path, tracker="wandb")
    assert not asked
