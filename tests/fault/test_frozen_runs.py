"""Runs whose Uppers are frozen, with and without looks that are kept: the real apps, in one process, over both transports."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from psl_flower.engine.looks import LookFile
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.errors import NodeLost, PeerLost
from psl_flower.runs.best_checkpoint import load_best
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.stores.prepare import prepare_stores
from tests.in_process import InProcessGrid, config_in, engines_one_by_one

STEPS = 8
SETTINGS = {
    "dataset": "digits", "max_train": 32, "max_test": 8, "stores": "plain", "patch_size": "8x8", "uppers": 2,
    "cut": "layer4", "backbone_width": 8, "protection": "code", "code_size": 6, "flip": True, "batch_size": 8,
    "rounds": 4, "steps_per_round": 2, "lr": 0.05, "freeze_uppers_after": 1, "lower_threads": 1, "upper_threads": 1,
    "device": "cpu", "node_timeout_s": 20.0,
}  # fmt: skip
LOOKS = {"looks": 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return prepare_stores(config(tmp_path_factory.mktemp("workspace")))


def config(workspace, **changes):
    return config_in(workspace, SETTINGS | changes)


@pytest.fixture
def make(stores, monkeypatch):
    """Return a function that makes the nodes of a run, whose states are its own, and notes each message's kind."""
    engines_one_by_one(monkeypatch)
    workspace = stores.folder.parents[1]

    def nodes(name):
        grid = InProcessGrid(stores.folder, workspace / f"state-{name}", 2)
        grid.kinds = []
        grid.on_message = lambda message: grid.kinds.append(message.metadata.message_type)
        grid.run_folder = RunFolder(workspace / "runs" / name)
        grid.train = lambda **more: grid.serve(**SETTINGS | {"run_name": name} | more, workspace=str(workspace))
        grid.again = lambda **more: grid.serve(resume=name, workspace=str(workspace), **more)
        return grid

    return nodes


def oracle(stores, **changes):
    given = config(stores.folder.parents[1], **changes)
    trainer = OneProcessTrainer(given, stores.description, stores.labels, [stores.open(m) for m in range(2)])
    trainer.train(STEPS)
    return trainer


def exact(run, trainer):
    """Whether the collected model is that of one process."""
    found, expected = load_file(run.model / MODEL_FILE), trainer.net.state_dict()
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize("looks", [0, 2])
def test_both_transports_are_bit_equal_to_one_process(transport, looks, make, stores):
    nodes = make(f"{transport}-{looks}")
    nodes.train(transport=transport, looks=looks)
    run, whole = nodes.run_folder, oracle(stores, looks=looks)
    assert exact(run, whole)
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows[-1]["accuracy"] == whole.evaluate().accuracy
    assert rows[-1]["test_loss"] == pytest.approx(whole.evaluate().loss, abs=1e-7)
    up, down = ([row[name] for row in rows] for name in ("bytes_up", "bytes_down"))
    if looks:
        # Round 2 brings all looks, of 32 images twice and 8 once; then there is not a byte.
        assert up[1] > 0 and up[2:] == down[2:] == [0, 0]
        assert rows[2]["bytes_up_per_image"] == 0.0
        assert not exact(run, oracle(stores, looks=1))
    else:
        # Gradients of 6 float32 for each patch no longer come down.
        assert all(later < down[0] - 16 * 2 * 2 * 6 * 4 * 0.9 for later in down[1:])
        assert all(up[1:])
    assert not exact(run, oracle(stores, looks=looks, freeze_uppers_after=2))


def test_a_node_that_is_gone_after_its_looks_does_not_matter(make, stores, monkeypatch):
    """Nothing is asked of any node then; its weights are collected once it is back."""
    nodes = make("gone")
    step = LowerEngine.train_step

    def leave(self, *args, **options):
        if self.step == 3:
            nodes.gone.add(101)
        return step(self, *args, **options)

    monkeypatch.setattr(LowerEngine, "train_step", leave)
    nodes.train(**LOOKS, node_timeout_s=1.0)
    run, whole = nodes.run_folder, oracle(stores, **LOOKS)
    assert run.read_status().state == "completed"
    assert "no model collected: " in run.read_status().message
    assert run.read_metrics()[-1]["accuracy"] == whole.evaluate().accuracy
    assert run.read_metrics()[-1]["absent_uppers"] == []
    nodes.gone.clear()
    nodes.again()
    assert exact(run, whole)


def test_a_node_that_goes_amid_its_looks_is_waited_for(make, stores, monkeypatch):
    nodes = make("missing")
    append, kept = LookFile.append, []

    def leave(self, smashed_BKhwC):
        append(self, smashed_BKhwC)
        kept.append(1)
        if len(kept) == 2:  # a batch of each Upper
            nodes.unreachable.add(101)

    monkeypatch.setattr(LookFile, "append", leave)
    with pytest.raises(NodeLost, match="node 101: the node is gone"):
        nodes.train(**LOOKS, node_timeout_s=1.0, transport="flower", evaluate_batch_size=8)
    nodes.unreachable.clear()
    nodes.again(transport="flower")
    # 4 batches of each view of the training images, and one of the test images.
    assert len(kept) == 2 * (2 * 4 + 1)
    assert exact(nodes.run_folder, oracle(stores, **LOOKS, evaluate_batch_size=8))


def test_every_kept_batch_of_looks_counts_as_headway(make, stores, monkeypatch):
    """A node that is lost in each of nine batches is waited for each time: it is not the same place five times."""
    nodes = make("faltering")
    append, lost = LookFile.append, []

    def falter(self, smashed_BKhwC):
        append(self, smashed_BKhwC)
        lost.append(1)
        raise PeerLost("Upper 0: the connection ended")

    monkeypatch.setattr(LookFile, "append", falter)
    nodes.train(**LOOKS, evaluate_batch_size=8)
    assert len(lost) == 2 * (2 * 4 + 1)
    assert exact(nodes.run_folder, oracle(stores, **LOOKS, evaluate_batch_size=8))


def killed(*args, **options):
    raise RuntimeError("killed")


KILLS = {
    "amid the looks": (LookFile, "append", 4),
    "as training alone begins": (LowerEngine, "train_step", 3),
    "amid training alone": (LowerEngine, "train_step", 6),
    "in the last evaluation": (LowerEngine, "logits", 4),
}


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS.keys())
def test_a_killed_run_resumes_to_the_same_weights(kill, transport, make, stores, monkeypatch):
    owner, name, number = kill
    nodes, counted, real = make(f"killed-{name}-{number}-{transport}"), [], getattr(owner, name)

    def nth(self, *args, **options):
        counted.append(1)
        return killed() if len(counted) == number else real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, nth)
        with pytest.raises(RuntimeError, match="killed"):
            nodes.train(**LOOKS, transport=transport, checkpoint_every=1, node_timeout_s=1.0)
    nodes.join()
    if owner is LowerEngine:
        nodes.gone |= {100, 101}
    nodes.again(transport=transport)
    run, whole = nodes.run_folder, oracle(stores, **LOOKS)
    assert run.read_metrics()[-1]["accuracy"] == whole.evaluate().accuracy
    nodes.gone.clear()
    nodes.again()
    assert exact(run, whole)


def test_early_stopping_with_looks_keeps_the_best_weights(make, stores):
    """The best may be of a step before the freezing, which nodes keep, or after it."""
    changes = {"valid_fraction": 0.25, "patience": 2, "lr": 0.2, "schedule": "constant", "rounds": 8}
    nodes = make("stopped")
    nodes.train(**LOOKS | changes)
    run = nodes.run_folder
    best = load_best(run)
    trainer = OneProcessTrainer(
        config(stores.folder.parents[1], **LOOKS | changes), stores.description, stores.labels,
        [stores.open(m) for m in range(2)],
    )  # fmt: skip
    trainer.train(best.step)
    assert exact(run, trainer)
    assert run.read_metrics()[-1]["accuracy"] == trainer.evaluate().accuracy


@pytest.mark.parametrize("predicted", ["stream", "flower"])
def test_a_frozen_run_predicts_as_others_do(predicted, make, stores):
    name = f"predicts-{predicted}"
    nodes = make(name)
    nodes.train(**LOOKS)
    nodes.serve(predict=name, transport=predicted, workspace=str(stores.folder.parents[1]))
    (folder,) = (nodes.run_folder.path / "predictions").iterdir()
    assert RunFolder(folder).read_status().accuracy == oracle(stores, **LOOKS).evaluate().accuracy
