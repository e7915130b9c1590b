"""The Upper's engine: what a turn does, in which order, and that a step is applied once or not at all."""

import numpy as np
import pytest
import torch

from psl_flower.engine.exchange import Down, WireFormat
from psl_flower.engine.inputs import normalise
from psl_flower.errors import ProtocolError, RunError, StoreError
from psl_flower.models.cut import from_wire
from psl_flower.wire.frames import Frame, decode_frame, frame_bytes
from psl_flower.wire.messages import Average, Saved, Share, Shared, Smashed, Step
from psl_flower.wire.plan import Plan, StepId, pack_samples
from tests.engines import Federation, differences, prefixed, settings


@pytest.fixture
def parts(stores_for, tmp_path):
    config = settings(uppers=2, cut="stem", shift=0, flip=False, weight_decay=0.0)
    return Federation(config, stores_for(config), tmp_path, small=True)


@pytest.fixture
def engine(parts):
    return parts.uppers[0]


def plan(step=0, mode="train", lr=0.1, samples=(3, 1, 2), attempt=0):
    return Plan(StepId(0, step, attempt), mode, lr, pack_samples(samples), 0)


def weights(engine):
    return {name: value.clone() for name, value in engine.model.state_dict().items()}


def test_a_plan_is_answered_with_the_smashed_data_of_its_samples(engine, parts):
    model = weights(engine)
    up = engine.handle(Down(Step(plan=plan())))
    assert isinstance(up.answer, Smashed)
    assert up.answer.id == StepId(0, 0, 0)
    assert up.tensor.shape == (3, 2, 8, 8, 64) == engine.pending_shape
    assert up.tensor.is_contiguous()
    assert not up.tensor.requires_grad

    other = parts.upper(0)
    other.model.load_state_dict(model)
    patches = torch.from_numpy(other.store.read(np.array([3, 1, 2]))).flatten(0, 1)
    expected = other.model.train()(normalise(patches, parts.description.mean, parts.description.std))
    assert torch.equal(from_wire(up.tensor), expected)


def test_a_gradient_is_applied_by_momentum_sgd_with_the_rate_of_its_own_plan(engine):
    before = engine.model.conv1.weight.detach().clone()
    engine.handle(Down(Step(plan=plan(0, lr=0.5))))
    first = torch.ones(engine.pending_shape)
    engine.handle(Down(Step(gradient_of=StepId(0, 0, 0), plan=plan(1, lr=0.25)), first))
    gradient = engine.model.conv1.weight.grad.clone()
    assert gradient.abs().max() > 0
    assert torch.allclose(engine.model.conv1.weight, before - 0.5 * gradient, rtol=1e-6, atol=1e-7)
    assert engine.step == 1

    between = engine.model.conv1.weight.detach().clone()
    assert engine.handle(Down(Step(gradient_of=StepId(0, 1, 0)), first)).answer == Saved(2)
    moving = 0.9 * gradient + engine.model.conv1.weight.grad
    assert torch.allclose(engine.model.conv1.weight, between - 0.25 * moving, rtol=1e-5, atol=1e-6)
    assert engine.pending_shape is None


def test_evaluation_changes_nothing_and_keeps_nothing(engine):
    before = weights(engine)
    up = engine.handle(Down(Step(plan=plan(0, "evaluate"))))
    again = engine.handle(Down(Step(plan=plan(0, "evaluate", attempt=1))))
    assert torch.equal(up.tensor, again.tensor)
    assert differences(before, weights(engine)) == []
    assert engine.pending_shape is None


def test_training_moves_the_statistics_once_a_plan(engine):
    engine.handle(Down(Step(plan=plan())))
    assert int(engine.model.bn1.num_batches_tracked) == 1


def test_the_checkpoint_is_of_after_the_gradient_and_before_the_plan(engine, parts):
    engine.handle(Down(Step(plan=plan())))
    engine.handle(Down(Step(gradient_of=StepId(0, 0, 0), plan=plan(1), save=True), torch.ones(engine.pending_shape)))
    assert int(engine.model.bn1.num_batches_tracked) == 2
    other = parts.upper(0)
    other.go_to(1)
    assert other.step == 1
    assert int(other.model.bn1.num_batches_tracked) == 1
    assert torch.equal(other.model.conv1.weight, engine.model.conv1.weight)
    assert not torch.equal(other.model.bn1.running_mean, engine.model.bn1.running_mean)


GRADIENT = torch.ones(3, 2, 8, 8, 64)
TWICE = [plan(), plan(0, "evaluate")]
# What came before, then a gradient or a plan -> what the message must say.
ORDERS = {
    "gradient without a pending plan": ([], StepId(0, 0), None, "the gradient of None, received that of StepId"),
    "gradient of another step": ([plan()], StepId(0, 1), None, "received that of StepId(epoch=0, step=1, attempt=0)"),
    "gradient of another attempt": (
        [plan()],
        StepId(0, 0, 1),
        None,
        "received that of StepId(epoch=0, step=0, attempt=1)",
    ),
    "gradient of another epoch": ([plan()], StepId(1, 0), None, "received that of StepId(epoch=1"),
    "gradient after an evaluation": (TWICE, StepId(0, 0), None, "expected the gradient of None"),
    "plan of a later step": ([], None, plan(1), "expected the plan of step 0, received that of step 1"),
    "next plan without the gradient": ([plan()], None, plan(1), "expected the gradient of StepId(epoch=0, step=0"),
    "the same plan twice": ([plan()], None, plan(), "expected the gradient of StepId(epoch=0, step=0"),
}


@pytest.mark.parametrize(("before", "gradient_of", "next_plan", "message"), ORDERS.values(), ids=ORDERS.keys())
def test_the_wrong_order_is_refused_and_changes_no_weight(before, gradient_of, next_plan, message, engine):
    assert ORDERS
    for earlier in before:
        engine.handle(Down(Step(plan=earlier)))
    held = weights(engine)
    with pytest.raises(ProtocolError) as caught:
        engine.handle(Down(Step(gradient_of=gradient_of, plan=next_plan), GRADIENT if gradient_of else None))
    assert message in str(caught.value)
    assert differences(held, weights(engine)) == []
    assert engine.step == 0


def test_a_gradient_is_not_applied_twice(engine):
    engine.handle(Down(Step(plan=plan())))
    turn = Down(Step(gradient_of=StepId(0, 0, 0)), GRADIENT)
    engine.handle(turn)
    held = weights(engine)
    with pytest.raises(ProtocolError, match="expected the gradient of None"):
        engine.handle(turn)
    assert differences(held, weights(engine)) == []
    assert engine.step == 1


def test_a_sample_that_is_not_there(engine):
    with pytest.raises(StoreError, match="sample 999 is outside the 32 samples"):
        engine.handle(Down(Step(plan=plan(samples=(0, 999)))))


def test_going_to_a_state(engine, parts):
    engine.go_to(0)
    with pytest.raises(RunError, match="no checkpoint of step 4"):
        engine.go_to(4)
    engine.handle(Down(Step(plan=plan())))
    state = engine.state()
    for change in ({"upper": 1}, {"dataset": "other"}):
        with pytest.raises(RunError, match="the checkpoint is not of Upper 0 and this dataset"):
            engine.restore(state | change)
    with pytest.raises(RunError, match="the checkpoint is of another network"):
        engine.restore(state | {"model": prefixed("x", state["model"])})
    with pytest.raises(RunError, match="the checkpoint is of another network"):
        engine.restore({name: value for name, value in state.items() if name != "optimizer"})
    engine.restore(state)
    # A pending pass belongs to the weights before; it is forgotten.
    assert engine.pending_shape is None


@pytest.fixture
def averaged(stores_for, tmp_path):
    config = settings(uppers=2, cut="stem", shift=0, flip=False, average_every=1)
    return Federation(config, stores_for(config), tmp_path, small=True).uppers[0]


def test_sharing_answers_with_the_weights_that_the_gradient_led_to(averaged):
    averaged.handle(Down(Step(plan=plan())))
    up = averaged.handle(Down(Share(StepId(0, 0)), torch.ones(averaged.pending_shape)))
    assert up.answer == Shared(StepId(0, 0))
    assert averaged.step == 1
    model = averaged.model
    expected = [*model.parameters(), model.bn1.running_mean, model.bn1.running_var]
    assert torch.equal(up.tensor, torch.cat([tensor.detach().flatten() for tensor in expected]))
    assert len(up.tensor) == averaged.weight_count


def test_an_average_is_taken_over_saved_and_run_with(averaged):
    averaged.handle(Down(Step(plan=plan())))
    averaged.handle(Down(Share(StepId(0, 0)), torch.ones(averaged.pending_shape)))
    average_N = torch.arange(averaged.weight_count) / averaged.weight_count
    up = averaged.handle(Down(Average(StepId(0, 0), plan(1), save=True), average_N))
    assert isinstance(up.answer, Smashed)
    saved = averaged._checkpoints.load(1)["model"]
    first = saved["conv1.weight"]
    assert torch.equal(first.flatten(), average_N[: first.numel()])
    assert saved["bn1.running_var"][-1] == average_N[-1]


@pytest.mark.parametrize("after", [StepId(0, 1), StepId(1, 0), StepId(0, 0, 1)])
def test_an_average_of_another_step_is_refused_and_changes_no_weight(after, averaged):
    averaged.handle(Down(Step(plan=plan())))
    averaged.handle(Down(Share(StepId(0, 0)), torch.ones(averaged.pending_shape)))
    held = weights(averaged)
    with pytest.raises(ProtocolError, match=r"average after StepId\(epoch=0, step=0, attempt=0\), received that after"):
        averaged.handle(Down(Average(after), torch.zeros(averaged.weight_count)))
    assert differences(held, weights(averaged)) == []


def test_an_average_is_not_taken_over_unless_weights_were_shared_and_not_twice(averaged):
    zeros = torch.zeros(averaged.weight_count)
    averaged.handle(Down(Step(plan=plan())))
    averaged.handle(Down(Step(gradient_of=StepId(0, 0)), torch.ones(averaged.pending_shape)))
    held = weights(averaged)
    with pytest.raises(ProtocolError, match="average after None, received"):
        averaged.handle(Down(Average(StepId(0, 0)), zeros))
    assert differences(held, weights(averaged)) == []
    averaged.handle(Down(Step(plan=plan(1))))
    averaged.handle(Down(Share(StepId(0, 1)), torch.ones(averaged.pending_shape)))
    averaged.handle(Down(Average(StepId(0, 1)), zeros + 1))
    with pytest.raises(ProtocolError, match="average after None, received"):
        averaged.handle(Down(Average(StepId(0, 1)), zeros))


def test_no_step_begins_without_the_average_that_is_waited_for(averaged):
    averaged.handle(Down(Step(plan=plan())))
    averaged.handle(Down(Share(StepId(0, 0)), torch.ones(averaged.pending_shape)))
    with pytest.raises(ProtocolError, match=r"expected the Uppers' average after StepId\(.*, received none"):
        averaged.handle(Down(Step(plan=plan(1))))
    averaged.restore(averaged.state())
    assert isinstance(averaged.handle(Down(Step(plan=plan(1)))).answer, Smashed)


def test_nothing_about_averaging_is_received_where_uppers_are_not_averaged(engine, averaged):
    wire = WireFormat()

    def received(party, message, tensor):
        return decode_frame(bytearray(frame_bytes(Frame(message, (tensor,)))), party.expects(wire)).message

    row = torch.zeros(averaged.weight_count)
    assert received(averaged, Average(StepId(0, 0)), row) == Average(StepId(0, 0))
    with pytest.raises(ProtocolError, match="expected Step or Finish, received Average"):
        received(engine, Average(StepId(0, 0)), row)
    for party in (engine, averaged):
        party.handle(Down(Step(plan=plan())))
    gradient = torch.zeros(averaged.pending_shape)
    assert received(averaged, Share(StepId(0, 0)), gradient) == Share(StepId(0, 0))
    with pytest.raises(ProtocolError, match="expected Step or Finish, received Share"):
        received(engine, Share(StepId(0, 0)), gradient)
    with pytest.raises(ProtocolError, match="expected Step or Share or Finish, received Average"):
        received(averaged, Average(StepId(0, 0)), row)
