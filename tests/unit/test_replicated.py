"""padding=replicate: the border of a patch repeated around it, with torchvision's names, on every stem and backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from psl_flower.errors import ConfigError
from psl_flower.models.resnet import ReplicatedConv2d
from psl_flower.models.split import Upper, smashed_size

CONVOLUTIONS = [(3, 1, 1), (3, 2, 1), (7, 2, 3), (1, 2, 0)]


@pytest.mark.parametrize(("size", "stride", "padding"), CONVOLUTIONS)
def test_it_is_torchs_own_replication(size, stride, padding):
    """Values and gradients, in float64; torch's padding adds in another order."""
    assert CONVOLUTIONS
    torch.manual_seed(0)
    given = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    convs = (
        ReplicatedConv2d(3, 4, size, stride, padding, bias=False).double(),
        nn.Conv2d(3, 4, size, stride, padding, bias=False, padding_mode="replicate").double(),
    )
    convs[1].load_state_dict(convs[0].state_dict())
    results = []
    for conv in convs:
        pixels = given.clone().requires_grad_()
        answer = conv(pixels)
        answer.square().sum().backward()
        results.append((answer.detach(), pixels.grad, conv.weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_names_shapes_and_weights_are_the_same(backbone, stem):
    plain, repeated = (Upper(backbone=backbone, stem=stem, cut="layer2", padding=p) for p in ("zeros", "replicate"))
    shapes = [{name: value.shape for name, value in upper.state_dict().items()} for upper in (plain, repeated)]
    assert shapes[0] == shapes[1]
    assert smashed_size(plain, (3, 16, 16)) == smashed_size(repeated, (3, 16, 16))
    repeated.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    inner, whole = (upper.eval()(pixels).detach() for upper in (plain, repeated))
    assert not torch.allclose(inner, whole)
    convolutions = [module for module in repeated.modules() if isinstance(module, nn.Conv2d)]
    assert all(isinstance(conv, ReplicatedConv2d) for conv in convolutions if conv.kernel_size != (1, 1))


def test_a_plain_patch_stays_plain():
    """Nothing in it says where its border is, unlike with zeros around it."""
    pixels = torch.full((1, 3, 8, 8), 0.7)
    maps = {p: Upper(padding=p).eval()(pixels).detach() for p in ("zeros", "replicate")}
    spread = {p: float((values - values[:, :, 4:5, 4:5]).abs().max()) for p, values in maps.items()}
    assert spread["replicate"] < 1e-5 < 1e-2 < spread["zeros"]


def test_channels_stay_last():
    pixels = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    seen = []
    upper = Upper(padding="replicate")
    upper.layer1[0].conv2.register_forward_hook(lambda module, given, answer: seen.append(answer))
    upper.to(memory_format=torch.channels_last)(pixels)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_another_padding_is_refused():
    with pytest.raises(ConfigError, match="padding: expected one of zeros, replicate, got 'mirror'"):
        Upper(padding="mirror")
