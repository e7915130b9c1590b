"""The full loss, against cross entropies worked out by hand."""

import math

import pytest
import torch

from psl_flower.errors import ConfigError
from psl_flower.losses import Targets, full_loss, loss_parts

# With logits (0, log 3) class 1 has probability 3/4: cross entropy log(4/3) for class 1, log 4 for class 0.
LOGITS = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
Y = torch.tensor([1, 0])
LOW, HIGH = math.log(4 / 3), math.log(4)
LOWER = (LOW + HIGH) / 2
EVEN = math.log(2.0)  # of two equal logits


def uppers(*per_patch):
    """Return (2, P, 2) logits: True is LOGITS, False is two zeros."""
    return torch.stack([LOGITS if sure else torch.zeros(2, 2) for sure in per_patch], dim=1)


def test_lower_loss_alone():
    parts = loss_parts(LOGITS, None, Targets(Y), (0, 1), 1.0)
    assert parts.lower.item() == pytest.approx(LOWER)
    assert parts.full.item() == parts.lower.item()
    assert parts.uppers.item() == 0.0


# positions sure, assignment, alpha -> sum over Uppers of Upper_Loss / (P / M).
CASES = [
    ((True, False), (0, 1), 1.0, LOWER + EVEN),
    ((True, False, False, False), (0, 1, 1, 0), 1.0, (LOWER + EVEN) / 2 + (EVEN + EVEN) / 2),
    ((True, True, True), (0, 0, 1), 0.5, 2 * LOWER / 1.5 + LOWER / 1.5),
    ((True, False), (0, 0), 2.0, (LOWER + EVEN) / 2),
    ((False, False), (0, 1), 0.0, EVEN + EVEN),
]


@pytest.mark.parametrize(("sure", "assignment", "alpha", "expected"), CASES)
def test_by_hand(sure, assignment, alpha, expected):
    assert CASES
    parts = loss_parts(LOGITS, uppers(*sure), Targets(Y), assignment, alpha)
    assert parts.uppers.item() == pytest.approx(expected, rel=1e-6)
    assert parts.full.item() == pytest.approx(LOWER + alpha * expected, rel=1e-6)
    assert full_loss(LOGITS, uppers(*sure), Y, assignment, alpha).item() == parts.full.item()


def test_gradient_reaches_every_patch_alike():
    logits = torch.zeros(2, 4, 2, requires_grad=True)
    full_loss(LOGITS, logits, Y, (0, 1, 1, 0), 1.0).backward()
    # d CE / d logit of two equal ones is -+1/2; divided by the batch of 2 and by P/M = 2.
    assert logits.grad[0, :, 1].tolist() == pytest.approx([-0.125] * 4)
    assert logits.grad[1, :, 1].tolist() == pytest.approx([0.125] * 4)


@pytest.mark.parametrize(("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_precision(given, computed):
    parts = loss_parts(LOGITS.to(given), uppers(True, False).to(given), Targets(Y), (0, 1), 1.0)
    assert parts.full.dtype == parts.uppers.dtype == computed


def test_wrong_number_of_patches_is_refused():
    with pytest.raises(ConfigError, match="the assignment has 4 patches, the Uppers' logits 3"):
        full_loss(LOGITS, uppers(True, True, True), Y, (0, 1, 2, 3), 1.0)


def test_smoothing_by_hand():
    # A tenth of the label is shared by two classes: 0.95 and 0.05.
    by_hand = sum(0.95 * right + 0.05 * wrong for right, wrong in [(LOW, HIGH), (HIGH, LOW)]) / 2
    parts = loss_parts(LOGITS, uppers(True, False), Targets(Y), (0, 1), 1.0, label_smoothing=0.1)
    assert parts.lower.item() == pytest.approx(by_hand)
    assert parts.uppers.item() == pytest.approx(by_hand + EVEN)


def test_mixed_labels_by_hand():
    # Sample 0 is 3/4 of class 1 and 1/4 of class 0; sample 1 is of class 0 twice.
    targets = Targets(Y, torch.tensor([0, 0]), 0.75)
    by_hand = ((0.75 * LOW + 0.25 * HIGH) + HIGH) / 2
    parts = loss_parts(LOGITS, uppers(True, False, True, True), targets, (0, 1, 1, 0), 1.0)
    assert parts.lower.item() == pytest.approx(by_hand)
    assert parts.uppers.item() == pytest.approx((3 * by_hand + EVEN) / 2)


def test_classes_weigh_as_they_are_told():
    """Class 0 weighs 3, class 1 weighs 1: the mean of the two samples' losses is weighted so, in every part."""
    targets = Targets(Y, class_weights_K=torch.tensor([3.0, 1.0]))
    parts = loss_parts(LOGITS, uppers(True, False), targets, (0, 1), 1.0)
    assert parts.lower.item() == pytest.approx((LOW + 3 * HIGH) / 4)
    assert parts.uppers.item() == pytest.approx((LOW + 3 * HIGH) / 4 + EVEN)


def test_weighted_classes_that_are_mixed_and_smoothed():
    weights = torch.tensor([3.0, 1.0])
    targets = Targets(Y, torch.tensor([0, 0]), 0.75, weights)
    lower = loss_parts(LOGITS, None, targets, (0, 1), 1.0, label_smoothing=0.2).lower
    # Of each sample: 0.8 of its class, 0.1 of each class, all times the classes' weights, over the classes' weights.
    spread = 0.1 * (3 * HIGH + LOW)
    of_own = (0.8 * LOW + spread + 0.8 * 3 * HIGH + spread) / 4
    of_other = (2 * (0.8 * 3 * HIGH + spread)) / 6
    assert lower.item() == pytest.approx(0.75 * of_own + 0.25 * of_other)
