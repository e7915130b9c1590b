"""A run whose folder is deleted or moved while it trains ends with an error that says so: the real apps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psl_flower.engine.lower import LowerEngine
from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.store_set import StoreSet
from server.event_files import EventFiles
from tests.fault.sealed_run import exact, train
from tests.in_process import InProcessGrid

GONE = "the folder of this run was deleted, moved or replaced while it was running; start a new run, or put the folder"


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Let something happen in the middle of a training step."""
    train_step = LowerEngine.train_step

    def disturbed(self: LowerEngine, *args: Any, **kwargs: Any) -> Any:
        if self.step == step:
            act()
        return train_step(self, *args, **kwargs)

    monkeypatch.setattr(LowerEngine, "train_step", disturbed)


@pytest.mark.parametrize(("what", "step"), [("run", 2), ("run", 5), ("workspace/runs", 0)])
def test_deleted(nodes: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int) -> None:
    run = RunFolder(tmp_path / "runs" / "run")
    place = run.path if what == "run" else tmp_path / "runs"
    at_step(monkeypatch, step, lambda: shutil.rmtree(place))
    with pytest.raises(RunError, match=rf"^{run.path}: {GONE}"):
        train(nodes, tmp_path)
    assert not run.path.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_only_the_event_files_deleted(nodes: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "runs" / "run")
    at_step(monkeypatch, 2, lambda: shutil.rmtree(run.tensorboard))
    with pytest.raises(RunError, match=rf"^{run.tensorboard}.*: cannot be written: No such file"):
        train(nodes, tmp_path)
    status = run.read_status()
    assert status is not None and status.state == "failed" and "tensorboard: cannot be written" in status.message


def test_moved_and_put_back(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, away = RunFolder(tmp_path / "runs" / "run"), tmp_path / "away"
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: run.path.rename(away))
        with pytest.raises(RunError, match=rf"^{run.path}: {GONE}"):
            train(nodes, tmp_path)
    assert not run.path.exists()
    away.rename(run.path)
    nodes.serve(resume="run", workspace=str(tmp_path))
    assert exact(run, stores)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_event_files_that_cannot_be_written(tmp_path: Path) -> None:
    events = EventFiles(tmp_path / "tensorboard")
    events.add("loss", 1.0, 1)
    events.flush()
    shutil.rmtree(tmp_path / "tensorboard")
    events.add("loss", 1.0, 2)
    for act in (events.flush, events.close):
        with pytest.raises(RunError, match=rf"^{tmp_path}/tensorboard.*: cannot be written: No such file"):
            act()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be written"):
        EventFiles(tmp_path / "file" / "tensorboard")
