"""The protections that people can choose: what crosses the cut, and how gradients pass it."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError
from psl_flower.models import PatchSplitNet
from psl_flower.models.split import reset_parameters, smashed_size
from psl_flower.patches import PatchGrid
from psl_flower.protection import PROTECTIONS, Protection
from psl_flower.protection.codes import Codes
from psl_flower.protection.pairs import PAIRS

GRID = PatchGrid(image_size=(16, 24), patch_size=(8, 12), stride=(8, 12))
LEVELS = [2, 3, 16, 256]


def test_the_choices():
    assert PROTECTIONS == ("none", "narrow", "code")
    assert PAIRS.keys() == set(PROTECTIONS)
    with pytest.raises(ConfigError, match="protection: expected one of none, narrow, code, got 'noise'"):
        Protection(name="noise")


@pytest.mark.parametrize("name", PROTECTIONS)
@pytest.mark.parametrize("channels", [1, 6])
def test_both_halves_fit_each_other_for_any_number_of_channels(name, channels):
    pair = Protection(name=name, size=5, levels=4, pool=2)(channels)
    crossing = pair.upper(torch.randn(3, channels, 4, 4))
    assert crossing.shape[:2] == (3, pair.wire_channels)
    assert pair.joined(pair.lower(crossing)).shape[:2] == (3, channels)


@pytest.mark.parametrize("name", ["none", "narrow", "code"])
def test_what_crosses_is_the_map_or_a_few_numbers(name):
    pair = Protection(name=name, size=5, levels=4, pool=2)(6)
    crossing = pair.upper(torch.randn(3, 6, 4, 4))
    assert crossing.shape == ((3, 6, 4, 4) if name == "none" else (3, 5, 1, 1))
    assert pair.joined(pair.lower(crossing)).shape == ((3, 6, 4, 4) if name == "none" else (3, 6, 2, 2))
    assert bool(pair.upper.state_dict()) == (name != "none")


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_are_levels_and_pass_gradients_as_tanh_does(levels):
    values = torch.linspace(-3, 3, 101, requires_grad=True)
    codes = Codes(levels)(values)
    known = torch.arange(levels) * (2 / (levels - 1)) - 1
    assert (codes[:, None] - known).abs().amin(1).max() < 1e-6
    assert len(codes.unique()) == min(levels, len(codes.unique()))
    assert (codes.detach() - torch.tanh(values.detach())).abs().max() <= 1 / (levels - 1) + 1e-6
    codes.sum().backward()
    assert torch.allclose(values.grad, 1 - torch.tanh(values.detach()) ** 2, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(Codes(levels)(values), codes)
        assert Codes(levels)(torch.tensor([0.5, torch.nan])).isnan().tolist() == [False, True]


@pytest.mark.parametrize("cut", ["stem", "layer3", "layer4", "pool"])
def test_an_image_crosses_the_cut_in_the_bits_of_its_codes(cut):
    config = RunConfig.of(cut=cut, protection="code", code_size=16, code_levels=2, backbone_width=8)
    protection = config.network.cut_protection
    net = PatchSplitNet(
        grid=GRID, num_uppers=2, num_classes=3, cut=cut, size=config.network.size, protection=protection, seed=0
    ).eval()
    smashed = net.smash(torch.randn(2, 3, 16, 24))
    assert smashed.shape == (2, 4, 16, 1, 1)
    assert set(smashed.unique().tolist()) == {-1.0, 1.0}
    assert protection.bits(GRID.num_patches) == 64
    assert config.smashed_codec == "code2"
    assert net.join(smashed).shape == (2, 3)
    assert smashed_size(net.uppers[0], (3, 8, 12)) == (16, 1, 1)


@pytest.mark.parametrize("name", [name for name in PROTECTIONS if name != "none"])
def test_all_weights_of_a_protection_come_from_the_seed(name):
    def made(seed):
        torch.manual_seed(7)
        protection = Protection(name=name, size=4)
        return PatchSplitNet(grid=GRID, num_uppers=2, num_classes=3, protection=protection, seed=seed).state_dict()

    first, same, other = made(1), made(1), made(2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    ours = [name for name in first if ".protection." in name or ".joined." in name]
    drawn = [name for name in ours if first[name].ndim > 1]
    assert len(drawn) >= 5
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_a_module_with_weights_of_its_own_draws_them_itself():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def reset_parameters(self):
            nn.init.normal_(self.weight)

    module = nn.Sequential(Own())
    drawn = []
    for seed in (1, 1, 2):
        reset_parameters(module, seed)
        drawn.append(module[0].weight.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_settings_with_a_protection_load_no_torch():
    program = (
        "import sys; from psl_flower.config import RunConfig; "
        "print(RunConfig.of(protection='code').smashed_codec, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["code2", "False"]
