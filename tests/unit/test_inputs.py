"""Normalisation, by hand."""

import numpy as np
import pytest
import torch

from psl_flower.engine.inputs import channel_column, normalise

PIXELS = np.array([[[[0, 255]], [[51, 102]]]], np.uint8)


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_by_hand(library):
    result = normalise(library(PIXELS.copy()), (0.5, 0.2), (0.25, 0.1))
    assert result.dtype == torch.float32
    assert torch.allclose(result, torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]]), atol=1e-6)


def test_the_input_stays_and_the_result_is_channels_last():
    given = torch.full((2, 3, 4, 5), 7, dtype=torch.uint8)
    result = normalise(given, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert int(given.min()) == int(given.max()) == 7


def test_a_channel_that_never_changes_stays_finite():
    result = normalise(np.full((1, 1, 2, 2), 51, np.uint8), (0.2,), (0.0,))
    assert result.abs().max() < 1e-6


def test_channel_column():
    assert channel_column((1.0, 2.0)).tolist() == [[[1.0]], [[2.0]]]
