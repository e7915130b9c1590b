"""The looks that the Lower has in training: recorded as they are received, and had again by replaying a run."""

import numpy as np
import pytest
import torch

from psl_flower.engine.build import Blueprint
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.leakage.recording import Recorder, side_by_side, spread
from psl_flower.leakage.replay import Threads, replay
from tests.engines import settings


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(10, 3, [3, 6, 9]), (3, 9, [0, 1, 2]), (5, 1, [4]), (1, 1, [0]), (200, 4, [49, 99, 149, 199])],
)
def test_looks_are_spread_over_the_training(count, most, expected):
    assert spread(count, most).tolist() == expected


class Trained:
    """A training of two epochs of 24 digits, with everything that its Lower received, written down by hand."""

    def __init__(self, stores, config):
        self.config, self.stores = config, stores
        description = stores.description
        self.task = Blueprint(config, description).task(stores.labels)
        self.samples = np.array([5, 0, 17, 23])
        self.received, self.sent = {}, {}
        with stores.opened() as opened:
            trainer = OneProcessTrainer(config, description, stores.labels, opened)
            recorder = Recorder(trainer.net, self.task, self.samples, most=9, steps=12)
            trainer.net.lower.register_forward_pre_hook(self._lower)
            trainer.train(6)
            trainer.evaluate()
            trainer.train(6)
        self.looks, self.net = recorder.finish(), trainer.net

    def _lower(self, lower, given):
        if lower.training:
            self.received[len(self.received)] = tuple(part.clone() for part in given)


@pytest.fixture(scope="module")
def trained(stores_for):
    config = settings(rounds=2, protection="code", code_size=3)
    return Trained(stores_for(config), config)


def test_what_is_kept_is_what_the_lower_received(trained):
    looks = trained.looks
    assert (looks.shown, looks.joined, looks.positions) == (2, 2, (0,))
    assert looks.smashed_LNPChw.shape == (2, 4, 4, 3, 1, 1)
    for look in range(2):
        for n, sample in enumerate(trained.samples):
            (place,) = [
                (step, b)
                for step in range(6 * look, 6 * look + 6)
                for b, other in enumerate(trained.task.order.samples(step))
                if other == sample
            ]
            smashed_BPChw, flipped_B = trained.received[place[0]]
            assert torch.equal(looks.smashed_LNPChw[look, n], smashed_BPChw[place[1]])
            assert looks.flipped_LN[look, n] == flipped_B[place[1]]
    assert set(looks.smashed_LNPChw.unique().tolist()) == {-1.0, 1.0}
    assert looks.gradient_LND.shape == (2, 4, 3)
    assert (looks.gradient_LND.abs().sum(2) > 0).all()


def test_a_recording_leaves_training_as_it_was(trained):
    with trained.stores.opened() as opened:
        trainer = OneProcessTrainer(trained.config, trained.stores.description, trained.stores.labels, opened)
        trainer.train(12)
    for name, tensor in trainer.net.state_dict().items():
        assert torch.equal(tensor, trained.net.state_dict()[name])


def test_a_run_is_had_again_bit_by_bit(trained):
    found = replay(trained.config, trained.stores, trained.net.state_dict(), trained.samples, most=9)
    assert found.exact and found.seconds > 0
    assert torch.equal(found.looks.smashed_LNPChw, trained.looks.smashed_LNPChw)
    assert torch.equal(found.looks.gradient_LND, trained.looks.gradient_LND)


def test_a_party_computes_with_its_own_threads_forward_and_backward(trained, monkeypatch):
    """As a run's nodes and server do, whose last bits depend on it."""
    before, taken = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    few = trained.config.replace(max_train=8, batch_size=8, rounds=1)
    found = replay(few, trained.stores, {}, trained.samples, most=1, steps=1, threads=Threads(uppers=3, lower=5))
    assert found.looks.shown == 1
    uppers = len(trained.net.uppers)
    assert taken == [*[3] * uppers, 5, *[3] * uppers, before]


def test_weights_that_are_not_the_runs_are_noticed(trained):
    changed = {name: tensor.clone() for name, tensor in trained.net.state_dict().items()}
    changed["lower.fc.bias"][0] += 1e-6
    assert not replay(trained.config, trained.stores, changed, trained.samples, most=1).exact


def test_the_weights_of_an_earlier_round_count_as_the_runs(trained):
    """A run with validation images keeps its best round, but its Lower received all rounds."""
    with trained.stores.opened() as opened:
        trainer = OneProcessTrainer(trained.config, trained.stores.description, trained.stores.labels, opened)
        trainer.train(6)
    found = replay(trained.config, trained.stores, trainer.net.state_dict(), trained.samples, most=1, steps=12)
    assert found.exact
    assert (found.looks.shown, found.looks.joined) == (2, 1)
    assert torch.equal(found.looks.smashed_LNPChw[0], trained.looks.smashed_LNPChw[1])


def test_a_look_that_is_repeated_counts_once(trained):
    """As of frozen Uppers, whose codes the Lower keeps."""
    net, order = trained.net, trained.task.order
    codes = torch.randn(100, 4, 3, 1, 1)
    recorder = Recorder(net, trained.task, trained.samples, most=9, steps=18)
    net.train()
    for step in range(18):
        # Two epochs show the same, a third another view.
        samples = torch.from_numpy(order.samples(step).copy())
        net.lower(codes[samples] + (order.epoch_of(step) == 2))
    looks = recorder.finish()
    net.eval()
    assert (looks.shown, looks.joined) == (2, 2)
    assert torch.equal(looks.smashed_LNPChw, torch.stack([codes[trained.samples], codes[trained.samples] + 1]))
    assert not looks.flipped_LN.any() and not looks.gradient_LND.numel()


def test_mirrored_looks_are_turned_back_and_kept_apart():
    smashed_LNPChw = torch.arange(2 * 3 * 1 * 1 * 1 * 2.0).reshape(2, 3, 1, 1, 1, 2)
    flipped_LN = torch.tensor([[False, True, False], [True, True, False]])
    joined_NPChw = side_by_side(smashed_LNPChw, flipped_LN, apart=True)
    assert joined_NPChw.shape == (3, 1, 4, 1, 2)
    # Look 0, not mirrored; mirrored; look 1, not mirrored; mirrored.
    assert joined_NPChw[0, 0, :, 0].tolist() == [[0, 1], [0, 0], [0, 0], [7, 6]]
    assert joined_NPChw[1, 0, :, 0].tolist() == [[0, 0], [3, 2], [0, 0], [9, 8]]
    without = side_by_side(smashed_LNPChw, flipped_LN & False, apart=False)
    assert without[0, 0, :, 0].tolist() == [[0, 1], [6, 7]]
