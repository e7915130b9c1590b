"""What crosses the cut: memory layouts on the wire, and the wire's effects without a wire."""

import pytest
import torch

from psl_flower.models.cut import boundary, from_wire, to_wire, unprotected
from psl_flower.wire import codecs
from psl_flower.wire.codecs import wire_roundtrip


def features(*shape):
    torch.manual_seed(0)
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def test_wire_layout():
    maps = features(6, 3, 2, 4)
    wire = to_wire(maps, num_positions=2)
    assert wire.shape == (3, 2, 2, 4, 3)
    assert wire.is_contiguous()
    assert wire.data_ptr() == maps.data_ptr()
    # Sample 1, position 1 is row 3; pixel (1, 2), channel 0.
    assert wire[1, 1, 1, 2, 0] == maps[3, 0, 1, 2]
    back = from_wire(wire)
    assert torch.equal(back, maps)
    assert back.data_ptr() == maps.data_ptr()


def test_from_other_memory_order():
    maps = features(6, 3, 2, 4).contiguous()
    assert torch.equal(from_wire(to_wire(maps, 3)), maps)


CODECS = [*codecs.CODECS, "code2", "code5"]


@pytest.mark.parametrize("activations", CODECS)
@pytest.mark.parametrize("gradients", CODECS)
def test_boundary_rounds_either_direction_as_the_wire_does(activations, gradients):
    assert CODECS
    maps = features(4, 3, 2, 2).requires_grad_()
    weight = features(4, 3, 2, 2) * 3
    passed = boundary(maps, activations, gradients)
    (passed * weight).sum().backward()
    expected = from_wire(wire_roundtrip(to_wire(maps.detach(), 2), activations))
    assert torch.equal(passed, expected)
    assert torch.equal(maps.grad, from_wire(wire_roundtrip(to_wire(weight, 2), gradients)))
    assert torch.equal(passed, maps) == (activations == "float32")
    assert torch.equal(maps.grad, weight) == (gradients == "float32")


def test_boundary_hands_gradients_over_channels_last():
    maps = features(4, 3, 2, 2).requires_grad_()
    seen = []
    before = maps * 1
    before.register_hook(seen.append)
    boundary(before).contiguous().flatten(1).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_double_precision_passes_unrounded():
    maps = features(2, 3, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(boundary, (maps,))
    assert torch.equal(boundary(maps), maps)


def test_no_protection_is_the_identity():
    pair = unprotected(64)
    maps = features(2, 64, 2, 2)
    assert pair.wire_channels == 64
    assert torch.equal(pair.lower(pair.upper(maps)), maps)
    assert not pair.upper.state_dict()
    assert not pair.lower.state_dict()
