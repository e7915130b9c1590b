"""Gaussian noise from a key: reproducible with the key, unpredictable without it.

Shape suffixes: B records, D numbers of a record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

KEY_BYTES = 32
# Other than that of the key itself (`psl_flower.sealed.suite.Purpose.CODE_NOISE`).
_PURPOSE = b"psl-flower/1/code-noise-draw"


def drawn(key: bytes, records: Sequence[bytes], size: int) -> NDArray[np.float32]:
    """Return numbers (B, size) of the standard normal distribution; a row depends on key and record alone.

    A record's stream is ChaCha20 (RFC 8439) under the key HKDF-Expand(key, purpose and record), and Box and Muller's
    method (1958) makes normal numbers of its bits, in float64.

    Parameters
    ----------
    key : bytes
        32 uniformly random bytes, secret from everyone who must not know the noise.
    records : sequence of bytes
        What each row is for.
    size : int
        Numbers of a row, 1 or more.
    """
    pairs = -(-size // 2)
    rows_BD = np.empty((len(records), size), np.float32)
    for b, record in enumerate(records):
        own = HKDFExpand(algorithm=hashes.SHA256(), length=KEY_BYTES, info=_PURPOSE + record).derive(key)
        # The nonce, and the counter before it, may be zero: the key serves this record alone.
        stream = Cipher(ChaCha20(own, bytes(16)), mode=None).encryptor().update(bytes(16 * pairs))
        # Row by row: vectorised functions may round by the place in an array.
        rows_BD[b] = _normal(np.frombuffer(stream, "<u8"))[:size]
    return rows_BD


def _normal(bits_2N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return as many normal numbers as there are of 64 bits; the count is even."""
    uniform_2N = ((bits_2N >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    first_N, second_N = np.split(uniform_2N, 2)
    radius_N, angle_N = np.sqrt(-2.0 * np.log(first_N)), 2.0 * np.pi * second_N
    return np.concatenate([radius_N * np.cos(angle_N), radius_N * np.sin(angle_N)])
