"""With freeze-uppers-after the Uppers stop changing, and with looks they are not asked again: bit-equal to one process."""

from __future__ import annotations

import pytest
import torch

from psl_flower.engine.exchange import Up
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.looks import LookFile, looks_of
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import PeerLost, ProtocolError, RunError, TrainingStopped
from psl_flower.wire.messages import Step
from psl_flower.wire.plan import Plan
from tests.engines import (
    Federation,
    Oracle,
    StatelessExchange,
    differences,
    monolith_snapshot,
    same_predictions,
    settings,
)

# Rounds of 2 steps; the Uppers learn in the first of three.
PER_ROUND, ROUNDS, FROZEN_AT, STEPS = 2, 3, 2, 6
CODE = {"backbone_width": 8, "protection": "code", "code_size": 6, "cut": "layer4"}
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
LOOKS = {"looks": 2, "uppers": 2} | CODE


def frozen(**changes):
    return settings(**({"rounds": ROUNDS, "steps_per_round": PER_ROUND, "freeze_uppers_after": 1} | changes))


class Parts(Federation):
    """A Federation with looks kept in its folder."""

    def __init__(self, config, stores, folder, **options):
        super().__init__(config, stores, folder, **options)
        self.looks = looks_of(self.blueprint, self.driver.task, folder / "looks", "run")
        self.driver._looks = self.looks


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


class Silent(LocalExchange):
    """Nobody may be asked anything."""

    def carry(self, frames, expected, meanwhile):
        raise AssertionError("a node was asked")


@pytest.mark.parametrize("views", [1, 2])
def test_once_looks_are_sent_no_node_is_asked_again(views, stores_for, tmp_path):
    config = frozen(**LOOKS | {"looks": views})
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(STEPS,)), Parts(config, stores, tmp_path)
    parts.driver.run(LocalExchange(parts.parties, parts.wire), FROZEN_AT, evaluate=True)
    assert parts.driver.looks_due
    assert parts.driver.absent_for_good is None
    exchange = Counting(parts)
    parts.driver.look(exchange)
    shown = [sample for turn, _ in exchange.sent for sample in turn.plan.sample_indices()]
    # 24 images of which each is shown once for each view and Upper, and 8 test images once.
    assert len(shown) == 2 * (views * 24 + 8)
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


class Vanishing(LocalExchange):
    """A node is gone when the plan of a step goes out, or that of a look."""

    def __init__(self, parts, mode, number):
        super().__init__(parts.parties, parts.wire)
        self._mode, self._left = mode, number

    def exchange(self, down, shapes, meanwhile):
        plan = down[min(down)].turn.plan
        if plan is not None and plan.mode == self._mode:
            self._left -= 1
            if self._left < 0:
                raise PeerLost("node 1 vanished")
        return super().exchange(down, shapes, meanwhile)


# The node vanishes amid learning, as the first frozen step begins, amid frozen steps, and in evaluations; with looks amid
# those of the first view and of the second. View 0 is asked for as an evaluation is.
FROM_THE_START = {"freeze_uppers_after": 0}
INTERRUPTED = [
    ({}, "train", 1), ({}, "look", 0), ({}, "look", 3), ({}, "evaluate", 1), ({}, "evaluate", 3),
    (FROM_THE_START, "look", 1), (LOOKS, "evaluate", 1), (LOOKS, "evaluate", 4), (LOOKS, "look", 0), (LOOKS, "look", 3),
    (LOOKS | FROM_THE_START, "evaluate", 2),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "mode", "number"), INTERRUPTED)
def test_an_interrupted_run_resumes_to_the_same_weights(changes, mode, number, stores_for, tmp_path):
    config = frozen(**changes)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    first = Parts(config, stores, tmp_path, checkpoint_every=1)
    first.driver.commit_start()
    exchange = Vanishing(first, mode, number)
    with pytest.raises(PeerLost, match="node 1 vanished"):
        for stop in range(PER_ROUND, STEPS + 1, PER_ROUND):
            first.driver.run(exchange, stop, evaluate=True)
    second = Parts(config, stores, tmp_path, checkpoint_every=1)
    resume(second)
    predictions = second.run()
    assert differences(whole.after[STEPS], second.snapshot()) == []
    assert same_predictions(predictions, whole.predictions)


def test_uppers_of_one_node_are_asked_together_after_a_kill_between_their_looks(stores_for, tmp_path, monkeypatch):
    """A node serves its Uppers in turn: asked for one alone, it would wait for the other's turn for ever."""
    config = frozen(**LOOKS)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    first, append, kept = Parts(config, stores, tmp_path, checkpoint_every=1), LookFile.append, []
    first.driver.commit_start()
    first.driver.run(LocalExchange(first.parties, first.wire), FROZEN_AT, evaluate=True)

    def killed(self, smashed_BKhwC):
        kept.append(1)
        if len(kept) == 4:
            raise RuntimeError("killed")
        append(self, smashed_BKhwC)

    with monkeypatch.context() as patch:
        patch.setattr(LookFile, "append", killed)
        with pytest.raises(RuntimeError, match="killed"):
            first.driver.look(LocalExchange(first.parties, first.wire))

    class Together(LocalExchange):
        def exchange(self, down, shapes, meanwhile):
            assert sorted(down) == sorted(shapes) == [0, 1]
            return super().exchange(down, shapes, meanwhile)

    second = Parts(config, stores, tmp_path, checkpoint_every=1)
    resume(second)
    second.driver.look(Together(second.parties, second.wire))
    predictions = second.run()
    assert differences(whole.after[STEPS], second.snapshot()) == []
    assert same_predictions(predictions, whole.predictions)


def resume(parts):
    """Go to the last commit, as the strategy does: the Uppers to the steps that they have applied and saved."""
    step = parts.checkpoints.steps()[-1]
    parts.lower.go_to(step, parts.checkpoints)
    for m, party in parts.parties.items():
        party.go_to(parts.driver.party_step, parts.lower.saved[m])
    return step


@pytest.mark.parametrize("changes", [{}, LOOKS, {"freeze_uppers_after": 0}])
def test_uppers_that_forget_between_messages_are_bit_equal(changes, stores_for, tmp_path):
    config = frozen(**changes)
    whole, parts = Oracle(config, stores_for(config), at=(STEPS,)), Parts(config, stores_for(config), tmp_path)
    exchange = StatelessExchange(parts, saved=parts.lower.saved)
    for stop in range(PER_ROUND, STEPS + 1, PER_ROUND):
        report = parts.driver.run(exchange, stop, evaluate=True)
    for m, engine in parts.uppers.items():
        engine.go_to(parts.driver.party_step, parts.lower.saved[m])
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert same_predictions(report.predictions, whole.predictions)
    # And on from the last commit, by other processes.
    again = Parts(config, stores_for(config), tmp_path)
    assert resume(again) == STEPS
    predictions = again.run(StatelessExchange(again, saved=again.lower.saved))
    assert same_predictions(predictions, whole.predictions)


def test_a_stop_amid_frozen_steps_and_amid_looks(stores_for, tmp_path):
    config = frozen(**LOOKS)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    asked = []
    parts = Parts(config, stores, tmp_path, stop_requested=lambda: bool(asked))
    parts.run(stop_step=FROZEN_AT)
    asked.append(True)
    with pytest.raises(TrainingStopped, match="stopped after step 2"):
        parts.driver.look(LocalExchange(parts.parties, parts.wire))
    assert [file.done for file in parts.looks._files.values()] == [1, 1]
    asked.clear()
    parts.driver._stop_requested = lambda: parts.lower.step == 5
    with pytest.raises(TrainingStopped, match="stopped after step 5"):
        parts.run()
    again = Parts(config, stores, tmp_path)
    assert resume(again) == 5
    assert again.looks.complete == (0, 1)
    again.run(Silent(again.parties, again.wire))
    assert differences(whole.after[STEPS], again.snapshot()) == []


def test_an_upper_without_looks_is_zeros(stores_for, tmp_path):
    """Its node went before it sent them; the others' suffice, and it takes part again when it is asked in time."""
    config, absent = frozen(**LOOKS | {"uppers": 4}), {1}
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(FROZEN_AT,))
    whole.monolith.train(2, absent=absent)
    parts = Parts(config, stores, tmp_path)
    parts.run(stop_step=FROZEN_AT)
    parts.driver.look(LocalExchange(parts.parties, parts.wire), absent)
    assert parts.looks.complete == (0, 2, 3)
    assert parts.driver.absent_for_good == (1,)
    parts.driver.run(None, FROZEN_AT + 2, evaluate=False, absent=(1,))
    assert differences(monolith_snapshot(whole.monolith), parts.snapshot()) == []
    again = Parts(config, stores, tmp_path)
    resume(again)
    assert again.driver.looks_due
    again.driver.look(LocalExchange(again.parties, again.wire))
    assert again.driver.absent_for_good == ()


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


def test_looks_are_private_and_of_this_run(stores_for, tmp_path):
    config = frozen(**LOOKS)
    stores = stores_for(config)
    parts = Parts(config, stores, tmp_path)
    parts.run()
    folder = tmp_path / "looks"
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["upper-000.looks", "upper-001.looks"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    # 6 signs of 2 patches in 2 bytes for each of 2 views of 24 images and 8 test images; and heads.
    assert files[0].stat().st_size < 2 * (2 * 24 + 8) + 32 * 20 + 400
    other = Parts(frozen(**LOOKS | {"code_size": 7}), stores, tmp_path / "other")
    with pytest.raises(RunError, match="they are of another run, or of other settings; delete the file"):
        looks_of(other.blueprint, other.driver.task, folder, "run")


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "no such file", "version", "swapped"])
def test_damaged_looks_are_asked_for_again_or_refused(damage, stores_for, tmp_path):
    config = frozen(**LOOKS)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    parts = Parts(config, stores, tmp_path)
    parts.run(stop_step=FROZEN_AT)
    parts.driver.look(LocalExchange(parts.parties, parts.wire))
    path = tmp_path / "looks" / "upper-000.looks"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-40])
        again = Parts(config, stores, tmp_path)
        assert again.looks.complete == (1,)
        resume(again)
        again.run()
        assert differences(whole.after[STEPS], again.snapshot()) == []
        return
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "longer":
        content += b"x"
    elif damage == "no such file":
        content[0] ^= 1
    elif damage == "version":
        content[8] = 9
    else:
        content = bytearray((tmp_path / "looks" / "upper-001.looks").read_bytes())
    path.write_bytes(content)
    words = {
        "flipped": r"batch \d+ was changed",
        "longer": "longer than it should be",
        "no such file": "it is no such file",
        "version": "version 9 is not known, only 1",
        "swapped": "of another run, or of other settings",
    }
    with pytest.raises(RunError, match=words[damage]):
        Parts(config, stores, tmp_path)


def test_all_views_are_used_equally_often(stores_for, tmp_path):
    config = frozen(looks=3)
    parts = Parts(config, stores_for(config), tmp_path)
    task = parts.driver.task
    samples = task.order.pool
    by_epoch = [task.freezing.chosen(epoch, samples) for epoch in range(3)]
    assert all((sum(chosen == view for chosen in by_epoch) == 1).all() for view in range(3))
    assert len(set(by_epoch[0].tolist())) == 3
    assert torch.equal(*[task.targets(task.train_plan(STEPS - 1))[1] for _ in range(2)])
