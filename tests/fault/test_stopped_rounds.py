"""Rounds that were interrupted, also in their evaluation, end and are told of: the real apps, in one process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.round_driver import RoundDriver
from psl_flower.errors import NodeLost, RunError, TrainingStopped
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.stores.prepare import prepare_stores
from psl_flower.system.files import DISK
from tests.in_process import InProcessGrid, config_in, engines_one_by_one

SETTINGS = {
    "dataset": "digits", "max_train": 24, "max_test": 4, "stores": "plain", "patch_size": "8x8", "uppers": 2,
    "cut": "stem", "batch_size": 8, "rounds": 3, "steps_per_round": 2, "evaluate_every": 2, "lower_threads": 1,
    "upper_threads": 1, "device": "cpu",
}  # fmt: skip


def test_rounds_end_where_they_would_have(tmp_path, monkeypatch):
    stores = prepare_stores(config_in(tmp_path, SETTINGS))
    run = RunFolder(tmp_path / "runs" / "cut")
    with monkeypatch.context() as patched:
        answers = itertools.chain([False], itertools.repeat(True))  # before the first step, and after it
        patched.setattr(RunFolder, "stop_requested", lambda self: next(answers))
        with pytest.raises(TrainingStopped, match="stopped after step 1,"):
            InProcessGrid(stores.folder, tmp_path / "state", 2).serve(
                **SETTINGS, workspace=str(tmp_path), run_name="cut"
            )
    assert run.read_metrics() == []
    InProcessGrid(stores.folder, tmp_path / "state", 2).serve(workspace=str(tmp_path), resume="cut")
    metrics = run.read_metrics()
    assert [(each["round"], each["step"]) for each in metrics] == [(1, 2), (2, 4), (3, 6)]
    assert [each["accuracy"] is not None for each in metrics] == [False, True, True]
    assert "round 1/3 done" in (run.path / "log.txt").read_text()


@pytest.fixture
def stores(tmp_path, monkeypatch):
    engines_one_by_one(monkeypatch)
    return prepare_stores(config_in(tmp_path, SETTINGS))


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def serve(made, tmp_path, **settings):
    grid = InProcessGrid(made.folder, tmp_path / f"state-{settings.get('run_name', settings.get('resume'))}", 2)
    grid.serve(**settings, workspace=str(tmp_path))


def evaluated(tmp_path, name):
    """Return what metrics.jsonl and predictions.npz say of the evaluations, and the status."""
    run = RunFolder(tmp_path / "runs" / name)
    rows = [(row["round"], row["step"], row["accuracy"], row["test_loss"]) for row in run.read_metrics()]
    with np.load(run.path / "predictions.npz") as found:
        return rows, found["confidence"].tolist(), run.read_status()


def rounds(tmp_path, name):
    """Return what metrics.jsonl says of each round's learning, and its images."""
    same = ("round", "step", "loss", "lower_loss", "upper_loss", "train_accuracy", "accuracy", "test_loss")
    rows = RunFolder(tmp_path / "runs" / name).read_metrics()
    assert all(row["train_s"] > 0 for row in rows)
    return [[row[key] for key in same] + [round(row["images_per_s"] * row["train_s"])] for row in rows]


def failing(monkeypatch, at, error):
    """Let the evaluation number `at` fail."""
    evaluate, count = RoundDriver._evaluate, itertools.count(1)

    def fails(self, *given):
        if next(count) == at:
            raise error
        return evaluate(self, *given)

    monkeypatch.setattr(RoundDriver, "_evaluate", fails)


@pytest.mark.parametrize("at", [1, 3])
def test_an_evaluation_that_the_process_did_not_survive_is_done_by_the_next(stores, tmp_path, monkeypatch, at):
    every = SETTINGS | {"evaluate_every": 1}
    serve(stores, tmp_path, **every, run_name="whole")
    with monkeypatch.context() as patched:
        failing(patched, at, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            serve(stores, tmp_path, **every, run_name="cut")
    serve(stores, tmp_path, resume="cut")
    whole, cut = evaluated(tmp_path, "whole"), evaluated(tmp_path, "cut")
    assert cut[:2] == whole[:2]
    assert cut[2].state == "completed"
    assert cut[2].accuracy == whole[2].accuracy
    assert rounds(tmp_path, "cut") == rounds(tmp_path, "whole")


def test_an_evaluation_that_a_node_was_lost_in_is_repeated_and_told_of(stores, tmp_path, monkeypatch):
    every = SETTINGS | {"evaluate_every": 1}
    serve(stores, tmp_path, **every, run_name="whole")
    failing(monkeypatch, 2, NodeLost("node 100: gone"))
    serve(stores, tmp_path, **every, run_name="cut")
    assert rounds(tmp_path, "cut") == rounds(tmp_path, "whole")


LONG_ROUNDS = SETTINGS | {"rounds": 2, "steps_per_round": 4, "evaluate_every": 1, "checkpoint_every": 1}


def disturbed(monkeypatch, at, error):
    """Let the training step that is the `at`-th to begin fail."""
    train_step, count = LowerEngine.train_step, itertools.count(1)

    def fails(self, *args, **kwargs):
        if next(count) == at:
            raise error
        return train_step(self, *args, **kwargs)

    monkeypatch.setattr(LowerEngine, "train_step", fails)


def killed(stores, tmp_path, monkeypatch, name, at, **settings):
    """Do a run whose process ends at the `at`-th training step, and resume it."""
    with monkeypatch.context() as patched:
        disturbed(patched, at, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            serve(stores, tmp_path, **LONG_ROUNDS | settings, run_name=name)
    serve(stores, tmp_path, resume=name)
    return rounds(tmp_path, name)


def test_metrics_cover_each_step_of_a_round_once_whatever_disturbs_it(stores, tmp_path, monkeypatch):
    serve(stores, tmp_path, **LONG_ROUNDS, run_name="whole")
    whole = rounds(tmp_path, "whole")
    assert killed(stores, tmp_path, monkeypatch, "killed", 3) == whole
    assert killed(stores, tmp_path, monkeypatch, "killed-2", 8, checkpoint_every=2) == whole  # a step is done twice
    with monkeypatch.context() as patched:
        disturbed(patched, 7, NodeLost("node 100: gone"))
        serve(stores, tmp_path, **LONG_ROUNDS, run_name="lost")
    assert rounds(tmp_path, "lost") == whole
    with monkeypatch.context() as patched:
        answers = itertools.chain([False] * 3, itertools.repeat(True))
        patched.setattr(RunFolder, "stop_requested", lambda self: next(answers))
        with pytest.raises(TrainingStopped, match="stopped after step 3,"):
            serve(stores, tmp_path, **LONG_ROUNDS, run_name="stopped")
    serve(stores, tmp_path, resume="stopped")
    assert rounds(tmp_path, "stopped") == whole
    # It is by the steps in the checkpoint; without them the first round's loss is that of its end alone.
    monkeypatch.setattr("psl_flower.engine.rounds.unpacked", lambda rows: [])
    cut = killed(stores, tmp_path, monkeypatch, "stateless", 3)
    assert [row[2] != other[2] for row, other in zip(cut, whole, strict=True)] == [True, False]


def test_a_model_that_could_not_be_written_is_written_by_the_next(stores, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        create = DISK.create

        def full(path, mode):
            if MODEL_FILE in path.name:
                raise OSError(28, "No space left on device")
            return create(path, mode)

        patched.setattr(DISK, "create", full)
        with pytest.raises(RunError, match=r"model\.safetensors: cannot be written: No space left"):
            serve(stores, tmp_path, **SETTINGS, run_name="cut")
    run = RunFolder(tmp_path / "runs" / "cut")
    assert run.model.is_dir() and not run.has_model
    serve(stores, tmp_path, resume="cut")
    assert run.has_model and run.read_status().state == "completed"
    before = contents(run)
    serve(stores, tmp_path, resume="cut")
    assert contents(run) == before
