"""Attacks that join looks: what the looks show together is found, and further looks do an attacker no harm."""

from __future__ import annotations

import pytest
import torch

from psl_flower.leakage.attack import Pairs, score, train_decoder
from psl_flower.leakage.audit import Attacks
from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.joining import Mean, Seen, best_mean, scaled
from psl_flower.patches import PatchGrid
from tests.engines import settings
from tests.unit.leaks import GRID, pictures

LOOKS = 6


def numbers(known) -> torch.Tensor:
    """Return 16 numbers of each patch (N, P, 16, 1, 1): means of 2x2 pixels."""
    patches_NPChw = GRID.split(known.pixels_NCHW)
    return torch.nn.functional.avg_pool2d(patches_NPChw.flatten(0, 1), 2).reshape(len(patches_NPChw), 4, 16, 1, 1)


def looks_at(known, noise: float, seed: int) -> torch.Tensor:
    """Return looks (L, N, P, 16, 1, 1): the same numbers each time, with new noise."""
    generator = torch.Generator().manual_seed(seed)
    clean = numbers(known)
    return clean + noise * torch.randn(LOOKS, *clean.shape, generator=generator)


def seen(smashed_LNPChw: torch.Tensor) -> Seen:
    return Seen(smashed_LNPChw, torch.zeros(smashed_LNPChw.shape[:2], dtype=torch.bool))


@pytest.fixture(scope="module")
def attacks(stores_for):
    chosen = AuditSettings(victims=40, auxiliary=240, epochs=6, seed=1)
    return Attacks(stores_for(settings()).description, pictures(40, seed=1), pictures(240, seed=2), chosen)


def attacked(attacks, given, target):
    """Return what one look shows, the last, and what all looks show."""
    one = attacks._attack("codes", *(pairs for pairs in scaled_pairs(attacks, given, target)), level="query")
    return one, attacks.of_looks(one, seen(given), seen(target))


def scaled_pairs(attacks, given, target):
    parts = scaled(seen(given), seen(target))
    known = (attacks.auxiliary, attacks.victims)
    return [Pairs(part.smashed_LNPChw[-1], each.pixels_NCHW) for part, each in zip(parts, known, strict=True)]


def test_noise_that_is_new_in_each_look_is_averaged_away(attacks):
    """The planted case: six looks together have two fifths of the noise of one."""
    one, joined = attacked(attacks, *(looks_at(k, 0.3, s) for s, k in enumerate((attacks.auxiliary, attacks.victims))))
    assert {found.looks for found in joined.findings} == {LOOKS} and len(joined.findings) == 2 * len(DECODERS)
    assert joined.best.validation_ssim > one.best.validation_ssim + 0.1
    assert joined.best.ssim.mean > one.best.ssim.mean + 0.1
    means = [found for found in joined.findings if "mean of " in found.attacker]
    assert len(means) == len(DECODERS)
    assert joined.victims_NCHW.shape == attacks.victims.pixels_NCHW.shape
    assert joined.shown_NCHW.shape == (8, 1, 16, 16)


def test_looks_that_show_nothing_do_no_harm(attacks):
    """The negative control: five looks of random numbers, and one as good as can be."""
    given, target = (looks_at(known, 0.0, 0) for known in (attacks.auxiliary, attacks.victims))
    for part in (given, target):
        part[:-1] = torch.randn(part[:-1].shape, generator=torch.Generator().manual_seed(5))
    one, joined = attacked(attacks, given, target)
    assert joined.best.validation_ssim >= one.best.validation_ssim > 0.6
    assert joined.best.ssim.mean > one.best.ssim.mean - 0.02
    assert not any("mean of" in found.attacker for found in joined.findings)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_of_many_looks_begins_as_one_of_their_weighted_sum(name):
    sizes = [Sizes(grid=GRID, smashed=(channels, 2, 2), channels=1) for channels in (3, 9)]
    torch.manual_seed(0)
    alone, joined = (DECODERS[name](size).eval() for size in sizes)
    looks = torch.randn(3, 5, 4, 3, 2, 2)
    assert joined.begin_with(alone, [0.5, 0.0, 2.0])
    side_by_side = torch.cat(list(looks), dim=2)
    with torch.no_grad():
        expected = alone(0.5 * looks[0] + 2.0 * looks[2])
        assert torch.allclose(joined(side_by_side), expected, atol=1e-5)
        # It is no more than a beginning: what it gives to the second look is learnt.
        assert joined(side_by_side.requires_grad_(True)).shape == (5, 1, 16, 16)


def test_dense_decoders_of_maps_that_are_averaged_differently_begin_anew():
    grid = PatchGrid(image_size=(32, 32), patch_size=(16, 16), stride=(16, 16))
    few, many = (DECODERS["dense"](Sizes(grid=grid, smashed=(C, 16, 16), channels=1)) for C in (4, 64))
    before = {name: tensor.clone() for name, tensor in many.state_dict().items()}
    assert not many.begin_with(few, [1.0] * 16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in many.state_dict().items())


class Shown(torch.nn.Module):
    """Makes an image of patches of one colour each."""

    def forward(self, smashed_BPChw):
        left, right = (smashed_BPChw[:, :, c, 0, 0] for c in (0, 1))
        patches = torch.stack([left, right], dim=2)[:, :, None, None, :].repeat_interleave(4, dim=4)
        return GRID.merge(patches.expand(-1, -1, 1, 8, 8).clone())


def test_mirrored_looks_are_turned_back_patch_by_patch():
    """Which looks are there, and how they lie, by hand: a patch is one colour on its left, another on its right."""
    colours = torch.rand(6, 4, 2)
    true = Shown()(colours[..., None, None])
    looks = torch.stack([colours.flip(-1), torch.rand(6, 4, 2), colours])[..., None, None]
    flipped = torch.zeros(3, 6, dtype=torch.bool)
    flipped[0] = True
    looks[1, 3:] = 0.0  # never received
    each = Seen(looks, flipped)
    assert torch.allclose(Mean((0,), 0.0).of(Shown(), each, GRID), true)
    assert not torch.allclose(Mean((0,), 0.0).of(Shown(), each._replace(flipped_LN=flipped & False), GRID), true)
    found = Mean((1,), 0.0).of(Shown(), each, GRID)
    assert torch.allclose(found[3:], true[3:]) and not torch.isclose(found[:3], true[:3]).all()
    chosen = best_mean(Shown(), each, true, GRID)
    assert set(chosen.looks) <= {0, 2} and chosen.validation_ssim == pytest.approx(1)


def test_scaling_leaves_what_was_not_received_at_the_mean():
    given = torch.rand(2, 50, 4, 3, 1, 1) + 5
    given[0, 7, 2] = 0.0
    known, target = scaled(seen(given), seen(given[:, :3]))
    assert not known.smashed_LNPChw[0, 7, 2].any() and known.smashed_LNPChw[1, 7, 2].any()
    assert known.smashed_LNPChw[1].mean().abs() < 1e-4
    assert torch.equal(target.smashed_LNPChw, known.smashed_LNPChw[:, :3])


def test_training_that_starts_with_a_decoder_never_ends_below_it(attacks):
    pairs = scaled_pairs(attacks, *(looks_at(known, 0.1, 0) for known in (attacks.auxiliary, attacks.victims)))[0]
    sizes = attacks._sizes(pairs.smashed_NPChw)
    good = train_decoder("dense", sizes, pairs, epochs=5, seed=0)
    worse = pairs._replace(images_NCHW=torch.cat([pairs.images_NCHW[:216].flip(0), pairs.images_NCHW[216:]]))
    begun = score(good.decoder, pairs.part(slice(216, None)))
    again = train_decoder("dense", sizes, worse, epochs=2, seed=0, start=good.decoder)
    assert again.validation_ssim == pytest.approx(begun) == pytest.approx(good.validation_ssim)
