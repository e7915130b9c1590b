"""Attackers who know less and more than how to query the Uppers: substitutes, and gradients through known weights."""

import copy

import pytest
import torch

from psl_flower.leakage.attack import Pairs
from psl_flower.leakage.audit import Attacks
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.known_weights import EVERY, STEPS, best_steps, mended
from psl_flower.leakage.measures import ssim
from psl_flower.leakage.report import CONSTANT, QUERY, UNPAIRED, WEIGHTS
from psl_flower.leakage.smashed import Scaling, normalised, one_hot
from psl_flower.leakage.unpaired import LabelledSmashed, substitute
from psl_flower.losses import Targets, loss_parts
from tests.engines import settings
from tests.unit.leaks import network, pictures


@pytest.fixture(scope="module")
def description(stores_for):
    return stores_for(settings()).description


@pytest.fixture(scope="module")
def attacks(description):
    return Attacks(
        description, pictures(40, seed=1), pictures(600, seed=2), AuditSettings(victims=40, auxiliary=600, epochs=6)
    )


@pytest.fixture(scope="module")
def trained(attacks):
    """Return a network whose Lower can tell the two classes."""
    net = network().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    known = attacks.auxiliary
    labels = torch.from_numpy(known.labels_N)
    for start in range(0, 600, 50):
        batch = slice(start, start + 50)
        logits = net(normalised(known.pixels_NCHW[batch], attacks.description))
        loss = loss_parts(
            logits, None, Targets(labels[batch]), net.assignment, 0.0, num_absent=0, label_smoothing=0
        ).full
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def best(attacked):
    return max(found.ssim.mean for found in attacked.findings)


def test_the_default_cut_is_open_to_who_knows_the_weights(attacks):
    """A planted leak: what a decoder made is mended to nearly the true image."""
    net = network(cut="layer1").requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    one, _ = attacks.of_codes(net)
    mended_ones = attacks.of_weights(net, one)
    (finding,) = mended_ones.findings
    assert (finding.level, finding.looks, one.best.level) == (WEIGHTS, 1, QUERY)
    assert finding.ssim.mean > 0.93 > one.best.ssim.mean
    assert "mended in" in finding.attacker and "mended in 0" not in finding.attacker
    assert mended_ones.victims_NCHW.shape == one.victims_NCHW.shape
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_images_are_mended_towards_what_was_received(attacks, trained):
    true = attacks.victims.pixels_NCHW[:6]
    with torch.no_grad():
        smashed = trained.smash(normalised(true, attacks.description))
    scaling, grey = Scaling.of(smashed), torch.full_like(true, 0.5)
    found = mended(trained, attacks.description, scaling, grey, smashed, 2 * EVERY)
    assert ssim(found, true).mean() > ssim(grey, true).mean() + 0.2
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(mended(trained, attacks.description, scaling, grey, smashed, 0), grey)
    steps = best_steps(trained, attacks.description, scaling, grey, Pairs(smashed, true))
    assert 0 < steps <= STEPS and steps % EVERY == 0
    # What is right already is left alone.
    assert best_steps(trained, attacks.description, scaling, true, Pairs(smashed, true)) == 0


def test_without_queries_a_substitute_shows_more_than_nothing(attacks, trained):
    unpaired = attacks.of_unpaired(trained)
    constant = next(f for f in attacks.of_classes().findings if f.knows == CONSTANT)
    assert {found.level for found in unpaired.findings} == {UNPAIRED}
    assert best(unpaired) > constant.ssim.mean + 0.05
    assert best(unpaired) < best(attacks.of_codes(trained)[0])


def test_a_substitute_uses_no_weights_of_the_uppers(attacks, trained):
    known, description = attacks.auxiliary, attacks.description
    pixels, classes = normalised(known.pixels_NCHW[:70], description), one_hot(known.labels_N[:70], 10)
    with torch.no_grad():
        received = LabelledSmashed(trained.smash(pixels), classes)
    other = copy.deepcopy(trained)
    for parameter in other.uppers.parameters():
        parameter.data.normal_()
    before = copy.deepcopy(trained.state_dict())
    made, same = (substitute(net, received, pixels, classes, epochs=1, seed=3) for net in (trained, other))
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    assert not torch.equal(made.uppers[0].conv1.weight, trained.uppers[0].conv1.weight)
    for name, tensor in trained.lower.state_dict().items():
        assert torch.equal(made.lower.state_dict()[name], tensor), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
