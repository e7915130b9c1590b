"""The patch-split network against torchvision's own ResNet: names, shapes, and values where the two must agree."""

import itertools

import pytest
import torch
import torchvision
from torch import nn

from psl_flower.errors import ConfigError
from psl_flower.models import AdaptationNet, PatchSplitNet
from psl_flower.models.architectures import BACKBONES, CUTS, STEMS, backbone_size, smashed_channels
from psl_flower.models.split import Lower, Upper, reset_parameters, smashed_size
from psl_flower.patches import PatchGrid

GRID = PatchGrid(image_size=(16, 24), patch_size=(8, 12), stride=(8, 12))
WHOLE = PatchGrid(image_size=(16, 24), patch_size=(16, 24), stride=(16, 24))


def resnet(backbone="resnet18", stem="cifar", in_channels=3, num_classes=10):
    """Return torchvision's ResNet with the stem that small images get."""
    net = torchvision.models.get_model(backbone, weights=None, num_classes=num_classes)
    if stem == "cifar":
        net.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    else:
        net.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return net


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def load(net: PatchSplitNet, whole: nn.Module) -> None:
    """Give every part of `net` the weights that `whole` has under the same name."""
    state = whole.state_dict()
    for part in [*net.uppers, net.lower]:
        part.load_state_dict({name: state[name] for name in part.state_dict()})


def test_lists_are_not_empty():
    assert BACKBONES == ("resnet18", "resnet34", "resnet50")
    assert CUTS == ("stem", "layer1", "layer2", "layer3", "layer4", "pool")
    assert STEMS == ("cifar", "imagenet")


@pytest.mark.parametrize(("backbone", "cut", "stem"), itertools.product(BACKBONES, CUTS, STEMS))
def test_names_and_shapes_are_torchvisions(backbone, cut, stem):
    with torch.device("meta"):
        expected = shapes(resnet(backbone, stem, in_channels=1, num_classes=7))
    upper = Upper(backbone=backbone, cut=cut, stem=stem, in_channels=1)
    lower = Lower(grid=GRID, num_classes=7, backbone=backbone, cut=cut, stem=stem)
    assert not shapes(upper).keys() & shapes(lower).keys()
    assert shapes(upper) | shapes(lower) == expected
    assert {name.split(".")[0] for name in shapes(upper)} == {"conv1", "bn1", *CUTS[1 : CUTS.index(cut) + 1]} - {"pool"}

    reduction = 2 ** max(0, CUTS.index(cut) - 1) * (1 if stem == "cifar" else 4)
    channels = smashed_channels(backbone, cut)
    assert upper.smashed_channels == channels
    size = (1, 1) if cut == "pool" else (-(-16 // reduction), -(-32 // reduction))
    assert smashed_size(upper, (1, 16, 32)) == (channels, *size)
    assert upper.training


COMPARED = [
    ("resnet18", "layer1", "cifar"),
    ("resnet50", "layer2", "imagenet"),
    ("resnet18", "layer4", "cifar"),
    ("resnet18", "pool", "imagenet"),
]


@pytest.mark.parametrize(("backbone", "cut", "stem"), COMPARED)
def test_one_patch_is_torchvisions_network(backbone, cut, stem):
    """In float64, to 1e-9: the same operations, in another memory order."""
    assert COMPARED
    torch.manual_seed(0)
    whole = resnet(backbone, stem).double()
    net = PatchSplitNet(grid=WHOLE, num_uppers=1, num_classes=10, backbone=backbone, cut=cut, stem=stem).double()
    load(net, whole)
    images = torch.randn(4, 3, 16, 24, dtype=torch.float64)
    assert torch.allclose(net.train()(images), whole.train()(images), atol=1e-9, rtol=1e-9)
    # The training pass above has moved both networks' statistics.
    assert torch.allclose(net.eval()(images), whole.eval()(images), atol=1e-9, rtol=1e-9)
    owner = net.lower if hasattr(net.lower, "layer4") else net.uppers[0]
    assert torch.allclose(owner.layer4[0].bn1.running_var, whole.layer4[0].bn1.running_var, rtol=1e-9)
    assert net.smash(images).shape[:2] == (4, 1)


def test_pooled_patches_are_joined_as_the_map_before_would_be():
    """The mean of the patches' means is the mean of the joined map, since all patches are of one size."""
    deep, pooled = (
        PatchSplitNet(grid=GRID, num_uppers=2, num_classes=3, cut=cut, seed=1) for cut in ("layer4", "pool")
    )
    images = torch.randn(2, 3, 16, 24)
    assert [name for name, _ in pooled.lower.named_children() if name in ("layer4", "avgpool", "fc")] == [
        "avgpool",
        "fc",
    ]
    assert torch.allclose(deep.eval()(images), pooled.eval()(images), atol=1e-6)
    with torch.no_grad():
        deep.lower.fc.weight.mul_(2)
    assert not torch.allclose(deep(images), pooled(images), atol=1e-3)


@pytest.mark.parametrize(("backbone", "expansion"), [("resnet18", 1), ("resnet50", 4)])
def test_a_width_scales_all_stages(backbone, expansion):
    size = backbone_size(backbone, 8)
    assert size.depths == backbone_size(backbone).depths
    assert (size.widths, backbone_size(backbone).widths) == ((8, 16, 32, 64), (64, 128, 256, 512))
    upper = Upper(backbone=backbone, cut="layer2", size=size)
    assert upper.conv1.weight.shape[0] == 8
    assert smashed_size(upper, (3, 8, 8)) == (16 * expansion, 4, 4)
    assert Lower(grid=GRID, num_classes=3, backbone=backbone, cut="layer2", size=size).fc.in_features == 64 * expansion


def test_patches_differ_from_the_whole_only_at_their_borders():
    torch.manual_seed(0)
    whole = resnet().eval()
    net = PatchSplitNet(grid=GRID, num_uppers=2, num_classes=10, cut="stem").eval()
    load(net, whole)
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        joined = GRID.tile(net.smash(images))
        expected = whole.relu(whole.bn1(whole.conv1(images)))
    differs = ((joined - expected).abs() > 1e-5).any(1).any(0)
    # A 3x3 convolution looks one pixel over the border between rows 7 and 8 and columns 11 and 12.
    border = torch.zeros(16, 24, dtype=torch.bool)
    border[7:9], border[:, 11:13] = True, True
    assert torch.equal(differs, border)


def test_each_upper_sees_its_own_patches_only():
    net = PatchSplitNet(grid=GRID, num_uppers=2, num_classes=3, cut="stem").eval()
    assert net.assignment == (0, 1, 1, 0)
    images = torch.randn(2, 3, 16, 24)
    before = net.smash(images)
    with torch.no_grad():
        net.uppers[1].conv1.weight.zero_()
    changed = (net.smash(images) != before).flatten(2).any(2).any(0)
    assert changed.tolist() == [False, True, True, False]


def test_flipped_samples_are_joined_mirrored():
    net = PatchSplitNet(grid=GRID, num_uppers=4, num_classes=3, cut="stem").eval()
    smashed = torch.randn(2, 4, 64, 8, 12)
    with torch.no_grad():
        logits = net.join(smashed, torch.tensor([False, True]))
        by_hand = net.join(torch.stack([smashed[0], smashed[1][[1, 0, 3, 2]]]))
    assert torch.equal(logits, by_hand)
    assert not torch.equal(logits[1], net.join(smashed)[1])


def test_seeds_decide_the_weights():
    def made(seed):
        torch.manual_seed(99)
        return PatchSplitNet(grid=GRID, num_uppers=2, num_classes=3, seed=seed).state_dict()

    first, second, other = made(1), made(1), made(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name in first if name.endswith(("conv1.weight", "fc.weight"))]
    assert len(weights) > 5
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_uppers_begin_alike_or_each_with_its_own_weights():
    def weights(**kwargs):
        net = PatchSplitNet(grid=GRID, num_uppers=4, num_classes=3, **kwargs)
        return [upper.layer1[1].conv2.weight for upper in net.uppers]

    alike, own, drawn = weights(seed=3), weights(seed=3, upper_init="own"), weights()
    assert all(torch.equal(alike[0], other) for other in alike)
    assert len({id(weight) for weight in alike}) == 4
    for different in (own, drawn):
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))
    with pytest.raises(ConfigError, match="upper-init: expected one of alike, own, got 'same'"):
        weights(seed=3, upper_init="same")


def test_a_seed_leaves_torchs_generator_alone():
    layer = nn.Linear(2, 2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    reset_parameters(layer, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_seed_decides_every_weight():
    layers = [nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)) for _ in range(2)]
    for made in layers:
        with torch.no_grad():
            layers[1][1].weight.add_(1)
        reset_parameters(made, seed=4)
    first, second = (made.state_dict() for made in layers)
    assert len(first) == 9
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_initial_weights_are_torchvisions_kind():
    net = PatchSplitNet(grid=GRID, num_uppers=1, num_classes=3, seed=0)
    weight = net.lower.layer4[1].conv2.weight
    # Kaiming, fan out, ReLU: standard deviation sqrt(2 / (512 * 9)); 2.4 million draws.
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert net.lower.layer4[1].bn2.weight.unique().tolist() == [1.0]
    assert net.lower.layer4[1].bn2.running_var.unique().tolist() == [1.0]


# patch, classes, channels at the cut -> input features of the first layer: channels * ceil(h/2) * ceil(w/2).
ADAPTATION = [
    ((16, 16), 10, 64, 64 * 8 * 8),
    ((8, 8), 3, 64, 64 * 4 * 4),
    ((7, 5), 2, 256, 256 * 4 * 3),
    ((1, 1), 4, 64, 64),
]


@pytest.mark.parametrize(("patch", "classes", "channels", "features"), ADAPTATION)
def test_adaptation_net_has_the_layers_of_the_paper(patch, classes, channels, features):
    assert ADAPTATION
    net = AdaptationNet(patch_size=patch, num_classes=classes, in_channels=channels)
    kinds = [type(layer).__name__ for layer in net.layers]
    assert kinds == [
        "AdaptiveAvgPool2d", "Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear",
    ]  # fmt: skip
    sizes = [tuple(layer.weight.shape) for layer in net.layers if isinstance(layer, nn.Linear)]
    assert sizes == [(512, features), (256, 512), (classes, 256)]
    assert net.layers[0].output_size == (-(-patch[0] // 2), -(-patch[1] // 2))
    assert net(torch.randn(2, channels, *patch)).shape == (2, classes)


def test_adaptation_net_takes_all_patches_in_one_pass():
    net = AdaptationNet((4, 4), 5, in_channels=8)
    smashed = torch.randn(3, 4, 8, 4, 4)
    logits = net.for_all_patches(smashed)
    assert logits.shape == (3, 4, 5)
    assert int(net.layers[3].num_batches_tracked) == 1
    net.eval()
    assert torch.allclose(net.for_all_patches(smashed)[:, 2], net(smashed[:, 2]), atol=1e-6)


def test_double_precision_stays_double():
    net = PatchSplitNet(grid=GRID, num_uppers=2, num_classes=3, cut="stem").double().eval()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    logits = net(images)
    assert logits.dtype == torch.float64
    assert (logits - net.float()(images.float())).abs().max() > 0


BAD = [
    ({"backbone": "vgg"}, "backbone: expected one of resnet18, resnet34, resnet50, got 'vgg'"),
    ({"cut": "layer5"}, "cut: expected one of stem, layer1, layer2, layer3, layer4, pool, got 'layer5'"),
    ({"stem": "auto"}, "stem: expected one of cifar, imagenet, got 'auto'"),
    ({"num_uppers": 5}, "5 Upper nodes cannot share 4 patches"),
    ({"assignment": "random"}, "assignment: expected"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_unknown_choices_are_refused(changes, message):
    assert BAD
    with pytest.raises(ConfigError, match=message):
        PatchSplitNet(**({"grid": GRID, "num_uppers": 4, "num_classes": 3} | changes))
