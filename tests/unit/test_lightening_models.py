"""What lightening makes of networks: the second's size, pruning, folding, rounding, distillation."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.distillation import TEMPERATURE, Teacher, divergence
from psl_flower.errors import ConfigError, TrainingError
from psl_flower.lightening.pruning import ladder, prune
from psl_flower.lightening.quantising import RoundedInput, RoundedWeights, folded, with_rounding, without_rounding
from psl_flower.lightening.settings import LARGEST_WEIGHT, Growth, Measure
from psl_flower.lightening.sizing import Cost, choose_second, cost_of, scaled
from psl_flower.lightening.training import LightTraining, LocalTrainer, SizedTeacher, epochs_of_run
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize, backbone_size
from psl_flower.patches import PatchGrid

SMALL = BackboneSize(depths=(1, 2, 1, 1), widths=(8, 16, 16, 24))
SMALLER = BackboneSize(depths=(1, 2, 1, 1), widths=(4, 8, 8, 16))


def make(size, backbone="resnet18", cut="layer1", num_uppers=2):
    """Return a network whose BatchNorm has statistics and weights that are not the initial ones."""
    torch.manual_seed(3)
    grid = PatchGrid(image_size=(16, 16), patch_size=(8, 8), stride=(8, 8))
    net = PatchSplitNet(
        grid=grid, num_uppers=num_uppers, num_classes=10, in_channels=1, backbone=backbone, cut=cut, size=size
    )
    with torch.no_grad():
        net.train()(torch.rand(16, 1, 16, 16))
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return net.eval().requires_grad_(False)


def images(number=6):
    return torch.rand(number, 1, 16, 16, generator=torch.Generator().manual_seed(4))


NETWORKS = [("resnet18", cut) for cut in ("stem", "layer1", "layer2", "layer3", "layer4", "pool")] + [
    ("resnet50", "layer1")
]


def silence(net, kept, backbone):
    """Make all channels but the first `kept` of every width do nothing: their weights and shifts become 0."""
    expansion = 4 if backbone == "resnet50" else 1
    limit = {wide: few for wide, few in zip(SMALL.widths, kept.widths, strict=True)}
    # Stages 2 and 3 are equally wide and keep equally many, so the width alone tells how many stay.
    limit |= {wide * expansion: few * expansion for wide, few in limit.items()} if expansion > 1 else {}
    for name, parameter in net.named_parameters():
        if not name.startswith("lower.fc"):
            parameter[limit[len(parameter)] :] = 0


@pytest.mark.parametrize(("backbone", "cut"), NETWORKS)
def test_channels_that_do_nothing_are_those_cut(backbone, cut):
    """The pruned network answers exactly as before: every weight is where its channels now are."""
    assert NETWORKS
    net, smaller = make(SMALL, backbone, cut), make(SMALLER, backbone, cut)
    silence(net, SMALLER, backbone)
    expected = net(images())
    pruned = prune(net, smaller).eval()
    torch.testing.assert_close(pruned(images()), expected, rtol=1e-5, atol=1e-6)
    assert expected.abs().max() > 0.01


def test_the_channels_with_the_largest_weights_are_kept():
    net = make(SMALL)
    block = net.uppers[1].layer1[0]
    block.conv1.weight *= 1e-3
    block.conv1.weight[[1, 2, 5, 7]] *= 1e4
    smaller = prune(net, make(SMALLER))
    kept = smaller.uppers[1].layer1[0].conv1.weight
    # Inputs are those that the whole network's stem keeps, alike on all Uppers.
    stems = [
        [
            i
            for i, w in enumerate(net.uppers[m].conv1.weight)
            for v in smaller.uppers[m].conv1.weight
            if torch.equal(w, v)
        ]
        for m in (0, 1)
    ]
    assert stems[0] == stems[1]
    assert len(stems[0]) == 4
    torch.testing.assert_close(kept, block.conv1.weight[[1, 2, 5, 7]][:, stems[0]])


def test_pruning_to_the_same_size_changes_nothing():
    net = make(SMALL)
    assert torch.equal(prune(net, make_other(net))(images()), net(images()))


def make_other(net):
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.zero_()
    return other


def test_the_ladder_goes_down_by_equal_shares_and_repeats_nothing():
    second = BackboneSize(depths=(2, 2, 2, 2), widths=(64, 128, 256, 512))
    sizes = ladder(second, 0.75, 4)
    assert sizes[0] == second
    assert [size.widths[3] for size in sizes] == [512, 360, 256, 184, 128]
    assert all(size.depths == second.depths for size in sizes)
    tiny = ladder(BackboneSize(depths=(1, 1, 1, 1), widths=(8, 8, 8, 16)), 0.9, 50)
    assert [size.widths for size in tiny] == [(8, 8, 8, 16), (8, 8, 8, 8)]


def test_costs_are_those_of_the_network(stores_for):
    config = RunConfig.of(max_train=8, max_test=4, uppers=2)
    description = stores_for(config).description
    size = BackboneSize(depths=(1, 1, 1, 1), widths=(8, 16, 16, 24))
    cost = cost_of(Blueprint(config, description), size)
    net = Blueprint(config, description).network(size)
    assert cost.parameters == sum(p.numel() for p in net.parameters())
    # 4 patches of 8x8 through the stem (1->8) and one block (8->8 twice), 3x3; the rest on 16x16 halved each stage.
    upper = 4 * 64 * 9 * (1 * 8 + 8 * 8 + 8 * 8)
    layer2 = 64 * (9 * (8 * 16 + 16 * 16) + 8 * 16)
    layer3 = 16 * (9 * (16 * 16 + 16 * 16) + 16 * 16)
    layer4 = 4 * (9 * (16 * 24 + 24 * 24) + 16 * 24)
    assert cost.multiply_adds == upper + layer2 + layer3 + layer4 + 24 * 10


def roughly(size):
    """Return a cost like a residual network's: quadratic in widths, linear in depths."""
    parameters = sum(d * w * w for d, w in zip(size.depths, size.widths, strict=True))
    return Cost(parameters, 1000 * sum(size.depths) * size.widths[0] ** 2)


@pytest.mark.parametrize("growth", list(Growth))
@pytest.mark.parametrize("measure", list(Measure))
@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
def test_the_second_is_larger_by_about_the_ratio(growth, measure, ratio):
    first = backbone_size("resnet18")
    second = choose_second(first, roughly, ratio=ratio, measure=measure, growth=growth)
    place = 0 if measure is Measure.PARAMETERS else 1
    found = roughly(second)[place] / roughly(first)[place]
    assert abs(math.log(found / ratio)) < (0.5 if growth is not Growth.WIDTH else 0.15)
    assert (second.depths > first.depths) == (growth is not Growth.WIDTH)
    assert (second.widths > first.widths) == (growth is not Growth.DEPTH)


def test_sizes_that_cannot_be():
    with pytest.raises(ConfigError, match="widths: expected 4 numbers of 1 or more"):
        BackboneSize(depths=(1, 1, 1, 1), widths=(8, 0, 8, 8))
    assert scaled(SMALL, 0.01).widths == (8, 8, 8, 8)


@pytest.mark.parametrize(("backbone", "cut"), NETWORKS)
def test_folding_keeps_the_answers_and_leaves_no_batchnorm(backbone, cut):
    net = make(SMALL, backbone, cut)
    plain = folded(net)
    torch.testing.assert_close(plain(images()), net(images()), rtol=1e-4, atol=1e-5)
    assert not [m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("bits", LARGEST_WEIGHT)
def test_weights_are_rounded_for_each_channel(bits):
    weight = torch.tensor([[[[1.0]], [[0.30]]], [[[-100.0]], [[30.0]]]])
    rounded = RoundedWeights(bits)(weight)
    steps = LARGEST_WEIGHT[bits]
    expected = torch.tensor([[1.0, round(0.30 * steps) / steps], [-100.0, round(0.30 * steps) / steps * 100]])
    torch.testing.assert_close(rounded.flatten(1), expected)
    assert torch.equal(RoundedWeights(bits)(torch.zeros(2, 1, 1, 1)), torch.zeros(2, 1, 1, 1))


def test_inputs_are_rounded_over_a_range_that_is_learnt_and_then_stays():
    rounding = RoundedInput().train()
    values = torch.tensor([0.0, 0.1234, 2.55])
    torch.testing.assert_close(rounding(values), torch.tensor([0.0, 0.12, 2.55]))
    rounding(torch.tensor([0.0, 25.5]))
    assert float(rounding.high) == pytest.approx(2.55 + 0.05 * (25.5 - 2.55))
    high = rounding.high.clone()
    assert float(rounding.eval()(torch.tensor([1000.0]))) == pytest.approx(float(high))
    assert torch.equal(rounding.high, high)


def test_training_under_rounding_moves_the_weights_behind_it():
    plain = folded(make(SMALL))
    rounded = with_rounding(plain, 7).train()
    logits = rounded(images())
    difference = (logits - plain(images())).abs().max()
    assert 0 < difference < 0.2 * logits.abs().max()
    F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64)).backward()
    gradients = [parameter.grad for parameter in rounded.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    weights = without_rounding(rounded)
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.state_dict().items())


def test_distillation_by_hand():
    taught, student = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = math.exp(1) / (math.exp(1) + 1)
    expected = (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))) * TEMPERATURE**2
    assert TEMPERATURE == 4.0
    assert float(divergence(student, taught)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(taught, taught)) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_shared_between_labels_and_teacher():
    net = make(SMALL)
    patches = net.grid.split(images())
    flipped = torch.tensor([True, False] * 3)
    logits = net.join(net.smash_patches(patches), flipped)
    own = torch.tensor(2.0)
    # A pupil that answers as its teacher does, for mirrored samples too, has only the labels' loss left.
    assert float(Teacher(net=net, share=0.7).loss(own, logits, patches, flipped)) == pytest.approx(0.6, abs=1e-5)
    other = Teacher(net=make(SMALLER), share=1.0).loss(own, logits, patches, flipped)
    assert float(other) == pytest.approx(
        float(divergence(logits, make(SMALLER).join(make(SMALLER).smash_patches(patches), flipped))), rel=1e-5
    )


@pytest.fixture
def trainer(stores_for):
    """Return what makes a trainer of 24 digits: 3 steps an epoch, and the network that it trains."""
    config = RunConfig.of(max_train=24, max_test=8, uppers=2, batch_size=8, lr=0.05, rounds=2, seed=5)
    stores = stores_for(config)
    opened = [stores.open(m) for m in range(2)]
    yield lambda progress=lambda *_: None, **changes: LocalTrainer(
        config=config.replace(**changes), stores=stores, opened=opened, device=torch.device("cpu"), progress=progress
    )
    for store in opened:
        store.close()


def a_training(place, epochs=3, what="it", **more):
    return LightTraining(what=what, place=place, size=SMALL, epochs=epochs, **more)


@pytest.mark.parametrize("rounding", [False, True])
def test_an_interrupted_training_ends_with_the_same_weights(trainer, tmp_path, rounding):
    def pupil():
        net = make(SMALL).requires_grad_(True)
        return with_rounding(folded(net), 7) if rounding else net

    teacher, bits = SizedTeacher(net=make(SMALL), share=0.5, size=SMALL), 7 if rounding else 0
    whole = trainer().train(a_training(tmp_path / "whole", teacher=teacher, weight_bits=bits), pupil())

    def interrupt(what, done, total):
        assert (what, total) == ("it", 9)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(interrupt).train(a_training(tmp_path / "parts", teacher=teacher, weight_bits=bits), pupil())
    seen = []
    rest = trainer(lambda _, done, __: seen.append(done))
    parts = rest.train(a_training(tmp_path / "parts", teacher=teacher, weight_bits=bits), pupil())
    # From the last whole epoch on.
    assert seen == [4, 5, 6, 7, 8, 9]
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in parts.state_dict().items())
    assert not torch.equal(next(iter(parts.parameters())), next(iter(pupil().parameters())))
    # Finished, it is not trained again.
    done = trainer(interrupt).train(a_training(tmp_path / "parts", teacher=teacher, weight_bits=bits), pupil())
    assert torch.equal(next(iter(done.parameters())), next(iter(whole.parameters())))
    # Without the teacher it learns something else.
    alone = trainer().train(a_training(tmp_path / "alone", weight_bits=bits), pupil())
    assert not torch.equal(next(iter(alone.parameters())), next(iter(whole.parameters())))


def test_a_loss_that_is_not_finite_ends_the_training(trainer, tmp_path):
    net = make(SMALL).requires_grad_(True)
    with torch.no_grad():
        net.lower.fc.bias[0] = float("nan")
    with pytest.raises(
        TrainingError, match="degree 4: the loss is not finite at step 1; train the run with a lower lr"
    ):
        trainer().train(a_training(tmp_path, epochs=1, what="degree 4"), net)
    config, description = trainer().config, trainer().stores.description
    assert epochs_of_run(config, description) == 2
    assert epochs_of_run(config.replace(rounds=2, steps_per_round=2), description) == 2
