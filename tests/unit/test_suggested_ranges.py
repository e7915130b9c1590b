"""What an error suggests for pixel-range holds the pixels that it speaks of."""

import re

import numpy as np
import pytest

from psl_flower.data.pixels import Decoder
from psl_flower.errors import DataError


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (np.eye(4, dtype=np.bool_), "pixel-range=0..1; if"),
        (np.full((4, 4), 14, np.uint8), "pixel-range=0..15; if"),
        (np.arange(-128, 128, dtype=np.int8).reshape(16, 16), "pixel-range=-128..127"),
        (np.array([[-3, 1000]]), "pixel-range=-1024..1023"),
        (np.array([[0, 4000]]), "pixel-range=0..4095"),
    ],
)
def test_the_range_that_an_error_suggests_holds_the_values(values, advice):
    def all_alike(survey):
        for _ in range(3):
            survey.array(values, "another")

    with pytest.raises(DataError, match=re.escape(advice)):
        Decoder(survey=all_alike).array(values, "here")
