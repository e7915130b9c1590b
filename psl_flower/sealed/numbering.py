"""The secret order in which an owner's images are numbered; the numbers themselves are not secret.

Datasets often come sorted by class, and nodes, relays and the audit log see image numbers, which also decide which
records share a block: in the order of the source they would reveal labels. So the images of a generation are numbered,
within each split, in an order that is derived from the root key: the owner has it, and k restorers together, who may
see all images. A continued ingest finds the same order; appended images get another one.

Shape suffix: N samples of a split.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from psl_flower.sealed.data_keys import open_root_as_owner
from psl_flower.sealed.identities import Identity
from psl_flower.sealed.manifest import Manifest
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import NONCE_BYTES, Purpose, derive

_DRAWN_BYTES = 8


def secret_orders(manifest: Manifest, owner: Identity, counts: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Return, for each split, the numbers of its source's samples (N,) in the order in which they are sealed.

    These samples belong to the manifest's generation, which may be a draft's. The owner opens the root key; `counts`
    are the samples of the source by split.

    Raises
    ------
    KeyMismatch
        If this is another owner's manifest.
    """
    orders = {}
    with open_root_as_owner(manifest, owner) as root:
        for split, count in counts.items():
            place = (manifest.epoch, manifest.generation, split.encode())
            with derive(root, manifest.dataset, Purpose.IMAGE_ORDER, *place) as key:
                orders[split] = _order(key, count)
    return orders


def _order(key: Secret, count: int) -> NDArray[np.int64]:
    """Sort samples by 64 bits each of ChaCha20's key stream; the key is used for nothing else."""
    zeros = bytes(_DRAWN_BYTES * count)
    stream = ChaCha20Poly1305(key.reveal()).encrypt(bytes(NONCE_BYTES), zeros, None)
    return np.frombuffer(stream, "<u8", count).argsort(kind="stable")
