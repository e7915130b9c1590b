"""With freeze-uppers-after the Uppers stop changing, and with looks they are not asked again: bit-equal to one process."""

from __future__ import annotations

import pytest
import torch

from psl_flower.engine.exchange import Up
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import ProtocolError
from psl_flower.wire.messages import Step
from psl_flower.wire.plan import Plan
from tests.engines import Federation, Oracle, differences, same_predictions
from tests.equivalence.frozen_parts import CODE, FROZEN_AT, LOOKS, PER_ROUND, STEPS, Parts, Silent, frozen

CASES = {
    "frozen": {},
    "frozen from the start": {"freeze_uppers_after": 0},
    "frozen, overlapping, two Uppers": {"stride": (4, 4), "uppers": 2},
    "frozen, codes, dropped patches, mixed": CODE | {"patch_dropout": 0.3, "mixup": 0.4},
    "frozen, averaged before": {"average_every": 1},
    "frozen, Adaptation Net elsewhere": {"adaptation_server": True},
    "frozen, int8": {"wire_activations": "int8", "wire_gradients": "int8"},
    "one look": {"looks": 1},
    "three looks": {"looks": 3},
    "one look, frozen from the start": {"looks": 1, "freeze_uppers_after": 0},
    "two looks, codes": CODE | {"looks": 2, "uppers": 2, "cutout": 3},
    "two looks, codes of whole bytes, dropped patches": CODE | {"looks": 2, "code_size": 8, "patch_dropout": 0.3},
    "two looks, numbers, images to validate on": {"looks": 2, "valid_fraction": 0.2},
    "two looks, int8": {"looks": 2, "wire_activations": "int8", "uppers": 2},
    "two looks, bfloat16, autocast": {"looks": 2, "wire_activations": "bfloat16", "autocast": True},
    "two looks, averaged before, Adaptation Net elsewhere": {"looks": 2, "average_every": 2, "adaptation_server": True},
}


class Counting(LocalExchange):
    """Counts what is sent, as (round's step, kind)."""

    def __init__(self, parts):
        super().__init__(parts.parties, parts.wire)
        self.sent = []

    def exchange(self, down, shapes, meanwhile):
        self.sent += [(part.turn, part.tensor is not None) for part in down.values()]
        return super().exchange(down, shapes, meanwhile)


def of_uppers(snapshot):
    return {name: tensor for name, tensor in snapshot.items() if "uppers." in name}


# These only with `make slow`.
SLOW = (
    "frozen, overlapping, two Uppers", "frozen, int8", "one look", "three looks", "two looks, numbers, images to validate on",
    "two looks, bfloat16, autocast",
)  # fmt: skip


@pytest.mark.parametrize(
    "changes", [pytest.param(CASES[case], id=case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_federated_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    assert CASES
    config = frozen(**changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(STEPS,)), Parts(config, stores, tmp_path)
    report = None
    for stop in range(PER_ROUND, STEPS + 1, PER_ROUND):
        report = parts.driver.run(LocalExchange(parts.parties, parts.wire), stop, evaluate=True)
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert parts.losses == whole.losses
    if config.training.valid_fraction:
        assert same_predictions(report.validation, whole.monolith.evaluate(split="valid"))
    else:
        assert same_predictions(report.predictions, whole.predictions)


def test_frozen_uppers_do_not_change_and_get_no_gradient(stores_for, tmp_path):
    config = frozen()
    parts = Parts(config, stores_for(config), tmp_path)
    parts.run(stop_step=FROZEN_AT)
    before, exchange = parts.snapshot(), Counting(parts)
    parts.driver.run(exchange, STEPS, evaluate=False)
    after = parts.snapshot()
    assert differences(of_uppers(before), of_uppers(after)) == []
    assert differences(before, after) != []
    assert [name for name in differences(before, after) if name.startswith("adaptation")] == []
    assert exchange.sent and not any(carries for _, carries in exchange.sent)
    assert all(isinstance(turn, Step) and turn.gradient_of is None for turn, _ in exchange.sent)
    # A plan of 4 samples: under half a kilobyte, where a gradient alone takes 65.
    assert exchange.bytes_down()[0] < (STEPS - FROZEN_AT) * 500


def test_without_freezing_the_uppers_would_have_changed(stores_for, tmp_path):
    """The negative control: the comparison tells a frozen run from another."""
    parts = Parts(frozen(), stores_for(frozen()), tmp_path)
    parts.run()
    learning = Oracle(frozen(freeze_uppers_after=-1), stores_for(frozen()), at=(STEPS,))
    different = differences(learning.after[STEPS], parts.snapshot())
    assert "uppers.0.conv1.weight" in different
    assert "lower.fc.weight" in different


def test_one_look_is_told_from_new_looks_and_from_other_views(stores_for, tmp_path):
    found = {}
    for views in (0, 1, 2):
        config = frozen(looks=views)
        parts = Parts(config, stores_for(config), tmp_path / str(views))
        parts.run()
        found[views] = parts.snapshot()
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert "lower.fc.weight" in differences(found[left], found[right])
        assert differences(of_uppers(found[left]), of_uppers(found[right])) == []


@pytest.mark.parametrize("views", [1, 2])
def test_once_looks_are_sent_no_node_is_asked_again(views, stores_for, tmp_path):
    config = frozen(**LOOKS | {"looks": views})
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(STEPS,)), Parts(config, stores, tmp_path)
    parts.driver.run(LocalExchange(parts.parties, parts.wire), FROZEN_AT, evaluate=True)
    assert parts.driver.looks_due
    assert parts.driver.needs_nodes
    exchange = Counting(parts)
    parts.driver.look(exchange)
    shown = [sample for turn, _ in exchange.sent for sample in turn.plan.sample_indices()]
    # 24 images of which each is shown once for each view and Upper, and 8 test images once.
    assert len(shown) == 2 * (views * 24 + 8)
    assert not parts.driver.needs_nodes
    assert parts.driver.absent_for_good == ()
    assert not parts.driver.looks_due
    parts.driver.run(Silent(parts.parties, parts.wire), 2 * PER_ROUND, evaluate=True)
    report = parts.driver.run(None, STEPS, evaluate=True)
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert same_predictions(report.predictions, whole.predictions)
    # Asking would have given the same predictions.
    parts.driver._looks = None
    asked = parts.driver.run(LocalExchange(parts.parties, parts.wire), STEPS, evaluate=True)
    assert same_predictions(asked.predictions, whole.predictions)


class Moving(UpperEngine):
    """A frozen Upper whose BatchNorm goes on moving."""

    def run(self, plan: Plan, backward_s: float = 0.0) -> Up:
        up = super().run(plan, backward_s)
        if plan.mode == "look" and self.store.meta.upper == 0:
            self.model.bn1.running_mean.add_(0.01)
        return up


class WrongView(LocalExchange):
    """The second view is asked of the nodes with another seed."""

    def exchange(self, down, shapes, meanwhile):
        down = {
            m: part._replace(turn=Step(plan=changed(part.turn.plan))) if part.turn.plan is not None else part
            for m, part in down.items()
        }
        return super().exchange(down, shapes, meanwhile)


def changed(plan):
    return plan if plan.mode != "look" else type(plan)(plan.id, "look", plan.lr, plan.samples, plan.augment_seed + 1)


@pytest.mark.parametrize("fault", ["moving", "wrong view", "wrong look"])
def test_the_comparison_notices(fault, stores_for, tmp_path):
    config = frozen(looks=0 if fault == "moving" else 2)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    parts = Parts(config, stores, tmp_path, make_engine=Moving if fault == "moving" else UpperEngine)
    parts.run(stop_step=FROZEN_AT)
    exchange = (
        WrongView(parts.parties, parts.wire) if fault == "wrong view" else LocalExchange(parts.parties, parts.wire)
    )
    if fault == "wrong look":
        read = parts.looks.read
        parts.looks.read = lambda plan: {m: tensor.flip(0) for m, tensor in read(plan).items()}
    parts.run(exchange)
    assert "lower.fc.weight" in differences(whole.after[STEPS], parts.snapshot())


def test_a_node_does_not_train_a_frozen_upper(stores_for, tmp_path):
    config = frozen(freeze_uppers_after=0)
    parts = Parts(config, stores_for(config), tmp_path)
    learning = Federation(frozen(freeze_uppers_after=-1), stores_for(config), tmp_path / "learning")
    plan = learning.driver.task.train_plan(0)
    with pytest.raises(ProtocolError, match="Upper 0 is frozen after step 0, received a plan to train"):
        parts.uppers[0].run(plan)


def test_all_views_are_used_equally_often(stores_for, tmp_path):
    config = frozen(looks=3)
    parts = Parts(config, stores_for(config), tmp_path)
    task = parts.driver.task
    samples = task.order.pool
    by_epoch = [task.freezing.chosen(epoch, samples) for epoch in range(3)]
    assert all((sum(chosen == view for chosen in by_epoch) == 1).all() for view in range(3))
    assert len(set(by_epoch[0].tolist())) == 3
    assert torch.equal(*[task.targets(task.train_plan(STEPS - 1))[1] for _ in range(2)])
