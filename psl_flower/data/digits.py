"""The embedded dataset: pictures of digits that come with scikit-learn, so that a first run needs no network.

Shape suffixes: N images, R rows asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psl_flower.config import EMBEDDED
from psl_flower.data.images import RawDataset, RawSplit
from psl_flower.data.pixels import Decoder

_SIZE = (16, 16)
_LEVELS = 16


def read_digits() -> RawDataset:
    """Return scikit-learn's 1,797 digits, grey, brought to 16x16 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    height, width = _SIZE

    def images(rows_R: NDArray[np.int64], _: Decoder) -> Iterator[NDArray[np.uint8]]:
        for row in rows_R.tolist():
            small = np.round(digits.images[row] * (255 / _LEVELS)).astype(np.uint8)
            scaled = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
            yield np.asarray(scaled, np.uint8)[:, :, np.newaxis]

    labels_N = digits.target.astype(np.int64)
    class_names = tuple(str(name) for name in digits.target_names)
    return RawDataset(
        class_names=class_names,
        train=RawSplit(name=EMBEDDED, labels_N=labels_N, images=images),
        test=None,
        reader="the embedded digits",
    )
