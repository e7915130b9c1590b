"""Training that validation images end: the best weights are kept and used, whenever the process was killed.

The real apps, in one process; only what a kill would cut off is made to fail.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.round_driver import RoundDriver
from psl_flower.errors import ConfigError
from psl_flower.kinds import kind_of
from psl_flower.runs.best_checkpoint import load_best
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.stores.prepare import prepare_stores
from server import validation
from tests.in_process import InProcessGrid, config_in, engines_one_by_one

# A rate so high that the loss on the validation images soon rises again.
SETTINGS = {
    "dataset": "digits", "max_train": 48, "max_test": 8, "stores": "plain", "patch_size": "8x8", "uppers": 2,
    "cut": "stem", "batch_size": 8, "rounds": 12, "steps_per_round": 1, "lr": 0.1, "schedule": "constant",
    "valid_fraction": 0.25, "patience": 2, "alpha": 0.0, "lower_threads": 1, "upper_threads": 1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return prepare_stores(config(tmp_path_factory.mktemp("workspace")))


def config(workspace, **changes):
    return config_in(workspace, SETTINGS | changes)


@pytest.fixture
def serve(stores, monkeypatch):
    """Return a function that lets the apps do a run, and returns its folder."""
    engines_one_by_one(monkeypatch)
    workspace = stores.folder.parents[1]

    def run(name, **settings):
        grid = InProcessGrid(stores.folder, workspace / f"state-{name}", 2)
        grid.serve(**settings, workspace=str(workspace))
        return RunFolder(workspace / "runs" / name)

    return run


@pytest.fixture(scope="module")
def whole(stores):
    """Return the folder of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        engines_one_by_one(patch)
        workspace = stores.folder.parents[1]
        InProcessGrid(stores.folder, workspace / "state-whole", 2).serve(
            **SETTINGS, run_name="whole", workspace=str(workspace)
        )
    return RunFolder(workspace / "runs" / "whole")


def came_to(run):
    """Return what does not depend on the clock: best.json, the model, and the measured numbers."""
    names = ("round", "step", "valid_loss", "valid_accuracy", "accuracy", "test_loss")
    rows = [[row.get(name) for name in names] for row in run.read_metrics()]
    return load_best(run), (run.model / MODEL_FILE).read_bytes(), rows


def test_it_ends_early_and_keeps_the_best_weights(whole, stores):
    best = load_best(whole)
    assert best.stopped_early
    assert 1 <= best.step == best.trained - 2 < 10
    *rounds, last = whole.read_metrics()
    losses = {row["step"]: row["valid_loss"] for row in rounds}
    assert min(losses, key=losses.get) == best.step
    assert losses[best.step] == best.value
    assert all(row["accuracy"] is None for row in rounds)
    assert last["step"] == best.step
    assert "valid_loss" not in last
    assert max(whole.checkpoints.steps()) == best.step
    status = whole.read_status()
    assert status.state == "completed"
    assert f"training ended early, after step {best.trained}; weights of step {best.step} kept" in status.message
    # Those weights are the very ones of that many steps in one process, which validated and tested alike.
    opened = [stores.open(m) for m in range(2)]
    alone = OneProcessTrainer(config(whole.path.parents[1]), stores.description, stores.labels, opened)
    alone.train(best.step)
    model = load_file(whole.model / MODEL_FILE)
    assert all(torch.equal(value, model[name]) for name, value in alone.net.state_dict().items())
    assert alone.evaluate(split="valid").loss == best.value
    assert alone.evaluate().accuracy == last["accuracy"]
    alone.train(1)
    assert not torch.equal(alone.net.lower.fc.weight, model["lower.fc.weight"])


def killed(*_, **__):
    raise KeyboardInterrupt


def after(function):
    def work(*given, **named):
        function(*given, **named)
        raise KeyboardInterrupt

    return work


def nth(function, at):
    """Return a function that is killed at its call number `at`."""
    calls = iter(range(1, 100))

    def work(*given, **named):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*given, **named)

    return work


# Where a kill cuts the run off -> how.
KILLS = {
    "in the second validation": lambda p: p.setattr(RoundDriver, "_evaluate", nth(RoundDriver._evaluate, 2)),
    "before the metrics of round 2": lambda p: p.setattr(RunFolder, "append_metrics", nth(RunFolder.append_metrics, 2)),
    "in a step": lambda p: p.setattr(Checkpoints, "save", nth(Checkpoints.save, 7)),
    "before best.json": lambda p: p.setattr(validation, "save_best", killed),
    "after best.json": lambda p: p.setattr(validation, "save_best", after(validation.save_best)),
    "after later checkpoints were dropped": lambda p: p.setattr(
        Checkpoints, "drop_after", after(Checkpoints.drop_after)
    ),
    "before the test": lambda p: p.setattr("server.run.ServerRun.predictions", killed),
    "before the model": lambda p: p.setattr("server.training.save_trained_model", killed),
}


@pytest.mark.parametrize("where", KILLS)
def test_killed_and_resumed_it_comes_to_the_same(where, whole, serve, stores, monkeypatch):
    name = where.replace(" ", "-")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        KILLS[where](patch)
        serve(name, **SETTINGS, run_name=name)
    run = serve(name, resume=name)
    assert came_to(run) == came_to(whole)


def test_without_patience_it_trains_to_the_end_and_still_keeps_the_best(whole, serve):
    run = serve("patient", **(SETTINGS | {"patience": 0, "rounds": 6}), run_name="patient")
    best = load_best(run)
    assert (best.trained, best.stopped_early) == (6, False)
    losses = {row["step"]: row["valid_loss"] for row in run.read_metrics() if "valid_loss" in row}
    assert len(losses) == 6
    assert best.step == min(losses, key=losses.get)


def test_a_finished_run_gets_no_other_rounds(whole, serve):
    before = came_to(whole)
    serve("whole", resume="whole")
    asked = kind_of({"resume": "whole", "workspace": str(whole.path.parents[1])})
    best = load_best(whole)
    expected = f"run whole has finished, after step {best.trained}, the weights of step {best.step} kept, test accuracy"
    assert asked.finished().message.startswith(expected)
    with pytest.raises(ConfigError, match=r"training of run whole ended after \d+ steps, of which the weights"):
        serve("whole", resume="whole", resume_rounds=20)
    assert came_to(whole) == before


@pytest.mark.parametrize("changes", [{"valid_fraction": 0.0}, {"evaluate_every": 0}])
def test_patience_needs_something_to_watch(changes, tmp_path):
    with pytest.raises(ConfigError, match="patience: "):
        config(tmp_path, **changes)


def test_the_file_is_plain(whole):
    assert json.loads((whole.path / "best.json").read_text())["monitor"] == "loss"
