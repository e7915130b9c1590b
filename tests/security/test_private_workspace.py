"""What is in a workspace is for its user alone, whatever the umask; an open one of an earlier version is shut."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from psl_flower.config import RunConfig
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.rounds import Predictions
from psl_flower.runs.folder import create_run
from psl_flower.stores.prepare import prepare_stores


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path / "deep" / "workspace"


def _open_to_others(folder: Path) -> list[Path]:
    """Return the files that another user can come to and read."""

    def walk(place: Path) -> Iterator[Path]:
        mode = place.stat().st_mode
        if not stat.S_ISDIR(mode):
            if mode & 0o044:
                yield place
        elif mode & 0o011:
            for inner in place.iterdir():
                yield from walk(inner)

    return list(walk(folder))


def _work(workspace: Path) -> Path:
    run = create_run(workspace, "a-run", "digits")
    run.write_config(RunConfig())
    numbers = np.arange(3)
    run.write_predictions(
        Predictions(sample=numbers, label=numbers, predicted=numbers, confidence=np.ones(3, np.float32), loss=1.0)
    )
    run.append_metrics({"step": 1})
    prepare_stores(RunConfig.of(dataset="digits", max_train=8, max_test=4, workspace=str(workspace)), None)
    return run.path


def test_of_a_new_workspace(workspace: Path) -> None:
    run = _work(workspace)
    assert stat.S_IMODE(workspace.stat().st_mode) == 0o700
    assert stat.S_IMODE((run / "predictions.npz").stat().st_mode) == 0o600
    assert (run / "metrics.jsonl").exists() and not _open_to_others(workspace.parents[1])


def test_of_an_open_workspace(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("runs", "stores"):
        (workspace / folder).mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "psl_flower"):
        _work(workspace)
    told = [record.getMessage() for record in caplog.records if "open to other users" in record.getMessage()]
    assert [line.split(":")[0] for line in told] == [str(workspace / "runs"), str(workspace / "stores")]
    assert not _open_to_others(workspace)
    # What somebody named, such as a home folder, is not changed.
    assert stat.S_IMODE(workspace.stat().st_mode) == 0o755


def test_checkpoints_of_a_node(workspace: Path) -> None:
    workspace.mkdir(parents=True)
    checkpoints = Checkpoints(workspace / "node")
    checkpoints.save(1, {"weights": {}})
    assert list((workspace / "node").iterdir()) and not _open_to_others(workspace)
