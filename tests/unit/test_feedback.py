"""Error feedback: the sum of the gradients that are sent stays that of the gradients, whatever the codec rounds off."""

from __future__ import annotations

import pytest
import torch

from psl_flower.config import RunConfig
from psl_flower.engine.rounding_feedback import GradientFeedback
from psl_flower.errors import ConfigError, TrainingError
from psl_flower.wire.codecs import CODECS, wire_roundtrip


def gradients(steps: int, B: int = 16, shape: tuple[int, ...] = (2, 1, 1, 3)) -> list[torch.Tensor]:
    """Return gradients as late in a training: one sample is wrong, and all others pull a little the same way."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(steps):
        small = 2e-3 * (1 + torch.rand(B, *shape, generator=generator))
        small[int(torch.randint(B, (), generator=generator))] = -1.0
        made.append(small)
    return made


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "float32"])
def test_what_is_sent_adds_up_to_the_gradients_but_for_what_is_owed(codec):
    feedback, sent, wanted = GradientFeedback(codec), torch.zeros(2, 3), torch.zeros(2, 3)
    for gradient in gradients(60, B=8, shape=(2, 2, 2, 3)):
        sent += wire_roundtrip(feedback.corrected(0, gradient), codec).sum((0, 2, 3))
        feedback.apply()
        wanted += gradient.sum((0, 2, 3))
    assert torch.allclose(sent + feedback.state()[0], wanted, atol=1e-3)


def regression(codec: str, feedback: GradientFeedback | None) -> float:
    """Return what an Upper's shift comes to in 300 steps of a regression whose gradients pass a codec.

    14 of 16 samples have a target that is 0.003 away, which is below half a step of int8: two samples whose gradients
    are 1 and -1 decide its scale.
    """
    shift = torch.zeros(1)
    for _ in range(300):
        gradient_B = (shift - 0.003).repeat(16)
        gradient_B[:2] = torch.tensor([1.0, -1.0])
        gradient = gradient_B.reshape(16, 1, 1, 1, 1)
        gradient = gradient if feedback is None else feedback.corrected(0, gradient)
        shift -= 0.005 * wire_roundtrip(gradient, codec).sum()
        if feedback is not None:
            feedback.apply()
    return float(shift)


def test_a_regression_ends_where_exact_gradients_lead():
    assert regression("float32", None) == pytest.approx(0.003, abs=1e-6)
    assert regression("int8", GradientFeedback("int8")) == pytest.approx(0.003, abs=3e-4)
    # The negative control: rounding alone learns nothing of it.
    assert regression("int8", None) == 0


def test_a_step_that_is_repeated_counts_once():
    feedback = GradientFeedback("int8")
    first, second = gradients(2)
    feedback.corrected(0, first)
    feedback.apply()
    owed = feedback.state()
    once = feedback.corrected(0, second)
    assert torch.equal(feedback.corrected(0, second), once)
    assert torch.equal(feedback.state()[0], owed[0])
    feedback.apply()
    after = feedback.state()
    # Gone back to before it, and done again: the same; what was not applied before is forgotten.
    feedback.corrected(0, first)
    feedback.restore(owed)
    feedback.apply()
    assert torch.equal(feedback.state()[0], owed[0])
    assert torch.equal(feedback.corrected(0, second), once)
    feedback.apply()
    assert torch.equal(feedback.state()[0], after[0])
    # An Upper that was absent is still owed what it was.
    feedback.corrected(1, first)
    feedback.apply()
    assert torch.equal(feedback.state()[0], after[0]) and set(feedback.state()) == {0, 1}


def test_refusals():
    with pytest.raises(ConfigError, match="gradient-feedback: is set, but wire-gradients=float32 rounds nothing"):
        RunConfig.of(gradient_feedback=True)
    with pytest.raises(TrainingError, match="not finite"):
        GradientFeedback("int8").corrected(0, torch.full((2, 1, 1, 1, 1), torch.nan))
