"""Federated training gives the very weights of training in one process, whatever the grid, codec or interruption.

Layers, cheapest first: the network in one process against plain autograd on whole images in float64; the parties over
`LocalExchange` (frames encoded and decoded, no network) against the network in one process, bit by bit in float32;
the flower transport's stateless Uppers; interruption. Then faults that each comparison must notice. Not seen here:
sockets (tests/unit/test_streams.py) and Flower (tests/e2e).
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from psl_flower.engine import adaptation as adaptation_module
from psl_flower.engine.exchange import Up
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import PeerLost
from psl_flower.losses import adaptation_loss
from psl_flower.models import AdaptationNet, PatchSplitNet
from psl_flower.models.split import adaptation_seed, reset_parameters
from psl_flower.wire.plan import Plan
from tests.engines import STEPS, Federation, Oracle, StatelessExchange, differences, same_predictions, settings

OVERLAP = {"stride": (4, 4)}
GRIDS = {
    "2x2, an Upper for each patch": {},
    "3x3 overlapping, an Upper for each patch": OVERLAP,
    "3x3 overlapping, two Uppers": OVERLAP | {"uppers": 2},
}
CODECS = {
    "bfloat16": {"wire_activations": "bfloat16", "wire_gradients": "bfloat16"},
    "int8, two Uppers": {"wire_activations": "int8", "wire_gradients": "int8", "uppers": 2},
    "bfloat16 up, float16 down, autocast": {
        "wire_activations": "bfloat16", "wire_gradients": "float16", "autocast": True,
    },
}  # fmt: skip
CASES = {
    **{f"{name}, alpha {alpha:g}": grid | {"alpha": alpha} for name, grid in GRIDS.items() for alpha in (0.0, 1.0)},
    **CODECS,
}
FEW, MANY = 2, 20


@pytest.fixture(scope="module")
def oracle(stores_for):
    """Return the base run in one process, with snapshots after 2 and 6 steps."""
    return Oracle(settings(), stores_for(settings()), at=(FEW, STEPS))


def test_lists_are_not_empty():
    assert len(CASES) == 9
    assert len(FAULTS) == 5


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_federated_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    config = settings(steps_per_round=MANY, **changes)
    stores = stores_for(config)
    # Autocast is slow where processors do not compute in bfloat16.
    steps = FEW if config.machine.autocast else MANY if config.wire.wire_activations == "float32" else 3
    whole, parts = Oracle(config, stores, at=(steps,)), Federation(config, stores, tmp_path)
    before = parts.snapshot()
    predictions = parts.run(stop_step=steps)
    assert differences(whole.after[steps], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)
    # Every weight has moved, so the equality is not that of two networks that learnt nothing.
    moved = set(differences(before, parts.snapshot()))
    assert moved >= before.keys()


def test_a_lossy_wire_is_told_from_the_exact_one(oracle, stores_for, tmp_path):
    parts = Federation(settings(wire_activations="bfloat16"), stores_for(settings()), tmp_path)
    parts.run(stop_step=FEW)
    assert any(name.startswith("uppers.") for name in differences(oracle.after[FEW], parts.snapshot()))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_process_equals_plain_autograd_on_whole_images(alpha, stores_for):
    """In float64, to 1e-9 of each tensor's size: sums over patches and over whole images differ in order only."""
    config = settings(flip=False, shift=0, uppers=2, alpha=alpha, lr=0.01)
    stores = stores_for(config)
    description, grid = stores.description, stores.description.grid()
    opened = [stores.open(m) for m in range(2)]
    monolith = DoubleMonolith(config, description, stores.labels, opened)

    net = PatchSplitNet(grid=grid, num_uppers=2, num_classes=10, in_channels=1, seed=config.training.seed).double()
    adaptation = AdaptationNet((8, 8), 10)
    reset_parameters(adaptation, adaptation_seed(config.training.seed))
    adaptation.double()
    optimizer = torch.optim.SGD([*net.parameters(), *adaptation.parameters()], lr=0.0, momentum=0.9, weight_decay=5e-4)
    # Without gradients, as alpha 0 leaves it, the Adaptation Net's weights must not even decay.
    for step in range(3):
        plan = monolith._task.train_plan(step)
        samples = plan.sample_indices()
        patches = torch.empty(len(samples), 4, 1, 8, 8, dtype=torch.uint8)
        for store in opened:
            patches[:, list(store.meta.positions)] = torch.from_numpy(store.read(samples))
        images = ((grid.merge(patches).float() / 255 - description.mean[0]) / description.std[0]).double()
        y = torch.from_numpy(stores.labels[samples])
        smashed = net.smash(images)
        loss = cross_entropy(net.join(smashed), y)
        if alpha:
            logits = adaptation(smashed.flatten(0, 1)).unflatten(0, (len(samples), 4))
            for m in range(2):
                of_upper = [cross_entropy(logits[:, p], y) for p in range(4) if net.assignment[p] == m]
                loss = loss + alpha * sum(of_upper) / (4 / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = plan.lr
        optimizer.step()
    monolith.train(3)
    expected, found = net.state_dict(), monolith.net.state_dict()
    assert expected.keys() == found.keys()
    if alpha:
        assert monolith.adaptation is not None
        expected = expected | adaptation.state_dict()
        found = found | monolith.adaptation.state_dict()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float64
            assert (tensor - found[name]).abs().max() <= 1e-9 * tensor.abs().max(), name


class DoubleMonolith(OneProcessTrainer):
    """Computes in float64."""

    def __init__(self, *args):
        super().__init__(*args)
        self.net.double()
        if self.adaptation is not None:
            self.adaptation.double()

    def _patches(self, plan):
        return super()._patches(plan).double()


def test_uppers_that_forget_between_messages_are_bit_equal(stores_for, tmp_path):
    config = settings(steps_per_round=MANY)
    whole, parts = Oracle(config, stores_for(config), at=(MANY,)), Federation(config, stores_for(config), tmp_path)
    predictions = parts.run(StatelessExchange(parts), stop_step=MANY)
    for engine in parts.uppers.values():
        engine.go_to(MANY)
    assert differences(whole.after[MANY], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)


class Vanishing(LocalExchange):
    """A node is gone when the plan of a step goes out; another has already run it."""

    def __init__(self, parts: Federation, fail_at: int) -> None:
        super().__init__(parts.parties, parts.wire)
        self._parts, self._fail_at = parts, fail_at

    def exchange(self, down, shapes, meanwhile):
        plan = down[0].turn.plan
        if plan is not None and plan.id.step == self._fail_at:
            meanwhile()
            self._parts.uppers[0].handle(down[0])
            raise PeerLost("node 1 vanished")
        return super().exchange(down, shapes, meanwhile)


@pytest.mark.parametrize("exchange", [Vanishing, StatelessExchange])
def test_an_interrupted_run_resumes_to_the_same_weights(exchange, oracle, stores_for, tmp_path):
    """Interrupted while step 4 goes out, one Upper a step ahead of the others; the last commit is of step 3."""
    stores = stores_for(settings())
    first = Federation(settings(), stores, tmp_path, checkpoint_every=3)
    with pytest.raises(PeerLost, match="node 1 vanished"):
        first.run(exchange(first, fail_at=4))
    assert first.checkpoints.steps() == [3]
    second = Federation(settings(), stores, tmp_path, checkpoint_every=3)
    assert second.resume() == 3
    predictions = second.run(exchange(second, fail_at=-1))
    if exchange is StatelessExchange:
        for engine in second.uppers.values():
            engine.go_to(STEPS)
    assert differences(oracle.after[STEPS], second.snapshot()) == []
    assert first.losses[:3] + second.losses == oracle.losses
    assert same_predictions(predictions, oracle.predictions)


class StaleWeight(UpperEngine):
    """Upper 0 forgets what the first gradient did to one convolution."""

    def run(self, plan: Plan, backward_s: float = 0.0) -> Up:
        weight = self.model.conv1.weight
        if plan.id.step == 0:
            self._old = weight.detach().clone()
        elif plan.id.step == 1 and self.store.meta.upper == 0:
            with torch.no_grad():
                weight.copy_(self._old)
        return super().run(plan, backward_s)


class DroppedGradient(LocalExchange):
    """The first gradient of Upper 0 never arrives; zeros do."""

    def exchange(self, down, shapes, meanwhile):
        trained, gradient = down[0].turn.gradient_of, down[0].tensor
        if trained is not None and trained.step == 0:
            down = dict(down) | {0: down[0]._replace(tensor=torch.zeros_like(gradient))}
        return super().exchange(down, shapes, meanwhile)


class RunsTwice(UpperEngine):
    """Runs every plan forward twice without going back to the state before it."""

    def run(self, plan: Plan, backward_s: float = 0.0) -> Up:
        super().run(plan)
        self._pending = None  # or the second would be refused
        return super().run(plan, backward_s)


def stale_weight(stores, folder, monkeypatch):
    return Federation(settings(), stores, folder, make_engine=StaleWeight), None


def dropped_gradient(stores, folder, monkeypatch):
    parts = Federation(settings(), stores, folder)
    return parts, DroppedGradient(parts.parties, parts.wire)


def batch_norm_twice(stores, folder, monkeypatch):
    return Federation(settings(), stores, folder, make_engine=RunsTwice), None


def wrong_alpha(stores, folder, monkeypatch):
    return Federation(settings(alpha=0.5), stores, folder), None


def mean_over_uppers(stores, folder, monkeypatch):
    def averaged(logits, y, assignment, **absent):
        return adaptation_loss(logits, y, assignment, **absent) / len(set(assignment))

    monkeypatch.setattr(adaptation_module, "adaptation_loss", averaged)
    return Federation(settings(), stores, folder), None


# What is wrong -> a name that must differ then.
FAULTS = {
    stale_weight: "uppers.0.conv1.weight",
    dropped_gradient: "momentum of uppers.0.conv1.weight",
    batch_norm_twice: "uppers.0.bn1.running_mean",
    wrong_alpha: "adaptation.layers.2.weight",
    mean_over_uppers: "adaptation.layers.2.weight",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_comparison_notices(fault, oracle, stores_for, tmp_path, monkeypatch):
    parts, exchange = fault(stores_for(settings()), tmp_path, monkeypatch)
    parts.run(exchange, stop_step=FEW)
    different = differences(oracle.after[FEW], parts.snapshot())
    assert FAULTS[fault] in different
    if fault is batch_norm_twice:
        # Statistics do not enter the training pass: only they differ, and only the comparison of buffers sees it.
        assert {name.split(".")[0] for name in different} == {"uppers"}
        assert {name.rsplit(".", 1)[1] for name in different} == {"running_mean", "running_var", "num_batches_tracked"}
