"""A run's folder: names, settings, status, metrics; damage and crashes read as what they are."""

import os
import re
import subprocess

import numpy as np
import pytest

from psl_flower.config import RunConfig
from psl_flower.engine.rounds import Predictions
from psl_flower.errors import RunError, StoreError
from psl_flower.runs.folder import RunFolder, Status, create_run, list_runs, open_run, this_process
from psl_flower.system.files import DISK


@pytest.fixture
def run(tmp_path):
    made = create_run(tmp_path, "first", "digits")
    made.write_config(RunConfig.of(lr=0.25))
    return made


def test_names(tmp_path):
    assert create_run(tmp_path, "mine", "digits").path == tmp_path / "runs" / "mine"
    first, second = create_run(tmp_path, "", "uoft-cs/cifar10"), create_run(tmp_path, "", "uoft-cs/cifar10")
    assert re.fullmatch(r"cifar10-\d{8}-\d{6}", first.name)
    assert first.name != second.name
    assert create_run(tmp_path, "", "/data/Meine Bilder/").name.startswith("Meine-Bilder-")


def test_a_name_is_taken_once(run, tmp_path):
    with pytest.raises(
        RunError,
        match='of this name already; choose another run-name, or continue it with resume="first"',
    ):
        create_run(tmp_path, "first", "digits")


def test_an_unusable_workspace(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"runs: cannot be made: .*; set workspace"):
        create_run(tmp_path / "file", "x", "digits")


def test_opening_and_listing(run, tmp_path):
    (tmp_path / "runs" / "no-run").mkdir()
    assert [found.name for found in list_runs(tmp_path)] == ["first"]
    assert open_run(tmp_path, "first").path == run.path
    with pytest.raises(RunError, match=r"runs/second: no such run \(there: first\)"):
        open_run(tmp_path, "second")
    with pytest.raises(RunError, match=r"no such run \(there: none\)"):
        open_run(tmp_path / "elsewhere", "second")


def test_a_workspace_that_may_not_be_looked_into(closed_folder):
    with pytest.raises(RunError, match="runs: cannot be listed: Permission denied"):
        list_runs(closed_folder)
    with pytest.raises(RunError, match="runs: cannot be listed: Permission denied"):
        open_run(closed_folder, "any")


def test_settings_come_back(run):
    assert run.read_config() == RunConfig.of(lr=0.25)


DAMAGED = ["lr = ", "lr = -1.0", "unknown-key = 1", 'lr = "0.1"']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_settings_are_refused(run, text):
    assert DAMAGED
    (run.path / "config.toml").write_text(text)
    with pytest.raises(RunError, match=r"config\.toml: damaged: "):
        run.read_config()


def test_missing_settings_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"config\.toml: cannot be read: No such file"):
        RunFolder(tmp_path).read_config()


def test_status(run):
    assert run.read_status() is None
    run.write_status(Status(state="training", step=3, loss=0.5))
    status = run.read_status()
    assert status is not None
    assert (status.state, status.step, status.loss, status.ended) == ("training", 3, 0.5, False)
    assert status.updated > 1.7e9
    assert all(Status(state=state).ended for state in ("completed", "stopped", "failed"))
    (run.path / "status.json").write_bytes(b"{")
    assert run.read_status() is None


def test_a_run_whose_process_is_gone(run):
    run.write_status(Status(state="starting", process=this_process()))
    assert not run.read_status().died
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = this_process().partition(":")[0]
    run.write_status(Status(state="starting", process=f"{host}:{gone.pid}"))
    assert run.read_status().died
    for other in (Status(state="starting", process=f"not-{host}:{gone.pid}"), Status(state="starting")):
        run.write_status(other)
        assert not run.read_status().died, "that cannot be known here"
    run.write_status(Status(state="completed", process=f"{host}:{gone.pid}"))
    assert not run.read_status().died


def test_a_run_whose_process_is_dead_but_not_reaped(run):
    """As a killed ServerApp is for as long as Flower's SuperExec does not ask for its status."""
    killed = subprocess.Popen(["sleep", "60"])
    run.write_status(Status(state="training", process=f"{this_process().partition(':')[0]}:{killed.pid}"))
    assert not run.read_status().died
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert run.read_status().died
    killed.wait()
    assert run.read_status().died


def test_a_loss_that_is_not_a_number_leaves_a_readable_status(run):
    run.write_status(Status(state="failed", loss=float("nan")))
    status = run.read_status()
    assert status is not None
    assert status.loss is None


def test_metrics_survive_a_line_cut_by_a_crash(run):
    assert run.read_metrics() == []
    run.append_metrics({"round": 1, "step": 10, "accuracy": None})
    run.append_metrics({"round": 2, "step": 20, "accuracy": 0.5})
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"round": 3, "st')
    assert [metrics["step"] for metrics in run.read_metrics()] == [10, 20]


def test_a_resumed_run_forgets_later_rounds(run):
    for number in (1, 2, 3):
        run.append_metrics({"round": number, "step": 10 * number})
    run.drop_metrics_after(20)
    run.append_metrics({"round": 3, "step": 30, "again": True})
    assert [metrics["step"] for metrics in run.read_metrics()] == [10, 20, 30]
    assert run.read_metrics()[-1]["again"] is True


def test_stop_requests(run):
    assert not run.stop_requested()
    run.request_stop()
    assert run.stop_requested()
    run.forget_stop()
    run.forget_stop()
    assert not run.stop_requested()


def test_predictions(run):
    predictions = Predictions(
        sample=np.array([4, 5]),
        label=np.array([1, 0]),
        predicted=np.array([1, 1]),
        confidence=np.array([0.9, 0.6], np.float32),
        loss=0.4,
    )
    assert predictions.accuracy == 0.5
    run.write_predictions(predictions)
    with np.load(run.path / "predictions.npz") as found:
        assert found["sample"].tolist() == [4, 5]
        assert found["predicted"].tolist() == [1, 1]
        assert found["split"].tolist() == ["test", "test"]
    run.write_predictions(predictions, ["train", "test"])
    with np.load(run.path / "predictions.npz") as found:
        assert found["split"].tolist() == ["train", "test"]


def test_manifest(run, stores_for):
    with pytest.raises(StoreError, match=r"manifest\.json: cannot be read"):
        run.read_description()
    description = stores_for(RunConfig.of(max_train=24, max_test=8)).description
    run.write_description(description)
    assert run.read_description() == description


def test_a_full_disk_is_an_error_of_ours(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DISK, "create", full)
    with pytest.raises(RunError, match=r"status\.json: cannot be written: No space left on device"):
        run.write_status(Status(state="training"))
