"""Every random choice, drawn from a seed and a name, the same for every party and after every interruption.

`evenly_spaced` chooses some of many without chance.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *names: str | int) -> int:
    """Return a seed in 0..2**63-1 for the purpose that `names` spell; distinct purposes give unrelated seeds."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(seed: int, purpose: str, samples_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each sample index (B,), dependent on nothing but (seed, purpose, sample).

    The mixing function is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied to the sample index twice.
    """
    key = np.uint64(derive(seed, purpose))
    with np.errstate(over="ignore"):
        bits = _splitmix(_splitmix(samples_B.astype(np.uint64) ^ key) + key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the indices 0..count-1, ascending, evenly spaced from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
