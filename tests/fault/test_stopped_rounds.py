"""A run that was stopped in the midst of a round goes on to that round's end: the real apps, in one process."""

from __future__ import annotations

import itertools

import pytest

from psl_flower.config import RunConfig
from psl_flower.data.preparing import prepare_stores
from psl_flower.errors import TrainingStopped
from psl_flower.runs import RunFolder
from tests.in_process import InProcessGrid

SETTINGS = {
    "dataset": "digits", "max_train": 24, "max_test": 4, "stores": "plain", "patch_size": "8x8", "uppers": 2,
    "cut": "stem", "batch_size": 8, "rounds": 3, "steps_per_round": 2, "evaluate_every": 2, "lower_threads": 1,
    "upper_threads": 1, "device": "cpu",
}  # fmt: skip


def test_rounds_end_where_they_would_have(tmp_path, monkeypatch):
    config = RunConfig.from_mapping({name.replace("_", "-"): value for name, value in SETTINGS.items()})
    stores = prepare_stores(config.replace(workspace=str(tmp_path)))
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
