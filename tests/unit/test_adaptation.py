"""The Adaptation Net as a party of its own: what it accepts, that its answer is autograd's, and its state."""

from __future__ import annotations

import math

import pytest
import torch

from psl_flower.engine.adaptation import AdaptationEngine, AdaptationInput, AdaptationNode
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.optimizers import Sgd
from psl_flower.errors import FrameMismatch, ProtocolError, RunError
from psl_flower.losses import Targets
from psl_flower.models import AdaptationNet
from psl_flower.models.split import reset_parameters
from psl_flower.wire.codecs import CODECS, wire_roundtrip
from psl_flower.wire.frames import decode_frame, frame_bytes
from psl_flower.wire.messages import Keep, Saved, Step
from psl_flower.wire.mid_step import Adapt, Adapted
from psl_flower.wire.plan import StepId, pack_samples

ASSIGNMENT, CLASSES = (0, 1, 1, 0), 3
WIRE = WireFormat()
SMASHED = torch.randn(4, 4, 2, 2, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 0])


def engine(alpha=1.0):
    net = AdaptationNet((4, 4), CLASSES, 8)
    reset_parameters(net, 0)
    return AdaptationEngine(net, ASSIGNMENT, alpha=alpha, make_optimizer=lambda parameters: Sgd(parameters, 0.9, 0.0))


@pytest.fixture
def node(tmp_path):
    return make(tmp_path)


def make(folder):
    return AdaptationNode(
        engine(),
        smashed_shape=(2, 2, 8),
        num_classes=CLASSES,
        num_samples=lambda step: 4 if step < 2 else 3,
        checkpoints=Checkpoints(folder),
    )


def task(step=0, classes=Y, absent=()):
    return Adapt(StepId(0, step), 0.1, pack_samples(classes), absent)


def mixed(others):
    return Adapt(StepId(0, 0), 0.1, pack_samples(Y), (), pack_samples(others), 0.75)


def send(node, message, *tensors, wire=WIRE):
    """Let a node answer a frame as it comes off a wire."""
    frame = wire.frame(message, *tensors)
    return node.reply(decode_frame(bytearray(frame_bytes(frame)), node.expects(wire)), wire)


def test_loss_and_gradient_are_those_of_plain_autograd(node):
    leaf = SMASHED.clone().requires_grad_()
    net = engine().net.train()
    losses = [
        torch.nn.functional.cross_entropy(logits, Y)
        for logits in net(leaf.flatten(0, 1).permute(0, 3, 1, 2)).reshape(4, 4, CLASSES).unbind(1)
    ]
    expected = sum(losses) / (4 / 2)
    expected.backward()
    answer = send(node, task(), SMASHED)
    assert isinstance(answer.message, Adapted)
    assert answer.message.id == StepId(0, 0)
    assert answer.message.loss == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(answer.tensor, leaf.grad, rtol=1e-4, atol=1e-7)
    assert node.step == 1


def test_what_a_node_learns_is_what_the_lower_would_learn(node):
    here = engine()
    for step in range(2):
        learnt = here.learn(AdaptationInput(SMASHED.permute(0, 1, 4, 2, 3), Targets(Y), (), 0.1))
        here.update()
        answer = send(node, task(step), SMASHED)
        assert answer.message.loss == learnt.loss
        assert torch.equal(answer.tensor, learnt.gradient_BPChw.permute(0, 1, 3, 4, 2))
    for left, right in zip(here.net.state_dict().values(), node.engine.net.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_absent_positions_get_no_gradient_and_move_nothing(node):
    spoilt = SMASHED.clone()
    spoilt[:, 2] = 1e6
    with_zeros = SMASHED.clone()
    with_zeros[:, 2] = 0.0
    answers = [
        send(each, task(absent=(2,)), data)
        for each, data in ((node, spoilt), (make(node._checkpoints.folder), with_zeros))
    ]
    assert torch.equal(answers[0].tensor, answers[1].tensor)
    assert answers[0].tensor[:, 2].abs().sum() == 0
    assert answers[0].tensor[:, 1].abs().sum() > 0


REFUSED = {
    "another step": (task(1), ProtocolError, "the Adaptation Net has applied 0 steps, expected 1"),
    "too few classes": (task(classes=Y[:3]), ProtocolError, "expected classes of 4 samples, received 3"),
    "a class beyond the last": (task(classes=[0, 1, 2, 3]), ProtocolError, "expected classes below 3"),
    "a class below 0": (task(classes=[0, 1, 2, -1]), ProtocolError, "expected classes below 3"),
    "too few classes mixed in": (mixed(Y[:3]), ProtocolError, "expected classes of 4 samples, received 3"),
    "a class mixed in beyond the last": (mixed([0, 1, 2, 3]), ProtocolError, "expected classes below 3"),
    "an unknown position": (task(absent=(4,)), ProtocolError, "expected some of 4 positions as absent"),
    "a position twice": (task(absent=(1, 1)), ProtocolError, "expected some of 4 positions as absent"),
    "all positions": (task(absent=(0, 1, 2, 3)), ProtocolError, "expected some of 4 positions as absent"),
}


@pytest.mark.parametrize(("message", "kind", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_task_is_refused_and_changes_nothing(message, kind, text, node):
    assert REFUSED
    before = {name: value.clone() for name, value in node.engine.net.state_dict().items()}
    with pytest.raises(kind, match=text) as caught:
        send(node, message, SMASHED)
    assert str(Y.tolist()) not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in node.engine.net.state_dict().items())
    assert node.step == 0
    send(node, task(), SMASHED)


def test_a_frame_is_refused_before_its_tensor_is_read(node):
    with pytest.raises(FrameMismatch, match=r"expected float32 \(4, 4, 2, 2, 8\), received float32 \(5, 4, 2, 2, 8\)"):
        send(node, task(), torch.zeros(5, 4, 2, 2, 8))
    with pytest.raises(ProtocolError, match="expected Adapt or Keep or Finish, received Step"):
        send(node, Step())
    for step in range(2):
        send(node, task(step), SMASHED)
    # The last batch of an epoch is smaller.
    with pytest.raises(FrameMismatch, match=r"expected float32 \(3, "):
        send(node, task(2), SMASHED)
    send(node, task(2, Y[:3]), SMASHED[:3])


def test_a_loss_that_is_not_finite_updates_nothing(node):
    before = node.engine.net.layers[2].weight.detach().clone()
    answer = send(node, task(), torch.full_like(SMASHED, float("nan")))
    assert math.isnan(answer.message.loss)
    assert torch.equal(node.engine.net.layers[2].weight, before)


def test_a_state_is_kept_and_found_again(node, tmp_path):
    send(node, task(), SMASHED)
    assert send(node, Keep(1)).message == Saved(1)
    with pytest.raises(ProtocolError, match="has applied 1 steps, expected 2"):
        send(node, Keep(2))
    there = send(node, task(1), SMASHED)
    again = make(tmp_path)
    again.go_to(1)
    assert torch.equal(send(again, task(1), SMASHED).tensor, there.tensor)
    with pytest.raises(RunError, match="no checkpoint of step 5"):
        again.go_to(5)
    with pytest.raises(RunError, match="the Adaptation Net: cannot be at step 2 with what was saved after step 1"):
        again.go_to(2, saved=1)  # no step is trained without it
    with pytest.raises(RunError, match="the checkpoint is of another network"):
        again.restore({"step": 1, "net": {}, "optimizer": {}})


def test_other_threads_are_said(node, tmp_path, monkeypatch, caplog):
    send(node, task(), SMASHED)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    send(node, Keep(1))
    make(tmp_path).go_to(1)
    assert caplog.text == ""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    make(tmp_path).go_to(1)
    assert "the Adaptation Net: the checkpoint was made with 1 threads, this process computes with 2" in caplog.text


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_crossed_the_wire_once_crosses_it_again_unchanged(codec, dtype):
    wire = WireFormat(activations=codec, gradients=codec, dtype=dtype)
    received = wire_roundtrip(SMASHED, codec).to(dtype)
    assert torch.equal(wire_roundtrip(received, wire.codec("joined")).to(dtype), received)
    gradient = torch.randn(5, 7).to(dtype)
    assert torch.equal(wire_roundtrip(gradient, wire.codec("joined gradient")).to(dtype), gradient)


def test_the_brief_codecs_stay_brief():
    assert WireFormat(activations="bfloat16").codec("joined") == "bfloat16"
    assert WireFormat(activations="float16").codec("joined") == "float16"
    assert WireFormat(activations="int8").codec("joined") == "float32"
