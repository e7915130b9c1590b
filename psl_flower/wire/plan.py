"""Steps and plans, which the Lower's messages name. Shape suffix B: batch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import ArrayLike, NDArray

MAX_SAMPLES = 65_536

Count = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0, le=1)]
# Sample indices or classes (B,), little-endian int64; see `pack_samples`.
Packed = Annotated[bytes, Meta(max_length=8 * MAX_SAMPLES)]


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records on the wire."""


class StepId(Record, frozen=True, order=True):
    """Identity of a step within a run, counted from 0; `attempt` numbers the passes after it that change no party.

    Those are the batches of an evaluation, and all looks of frozen Uppers. A step of training that is tried again is
    the same step: all parties have gone back before.
    """

    epoch: Count
    step: Count
    attempt: Count = 0


class Plan(Record, frozen=True, omit_defaults=True):
    """What to run forward next."""

    id: StepId
    #: "evaluate" keeps no graph and moves no BatchNorm statistics; nor does "look", which augments as "train" does.
    mode: Literal["train", "look", "evaluate"]
    lr: float  #: Learning rate of this step's update, finite, at least 0.
    samples: Packed  #: Sample indices, little-endian int64, at most 65,536; see `pack_samples`.
    augment_seed: Count  #: Seed of the epoch's coordinated augmentation, 0..2**64 - 1.
    #: Weight, 0..1, of a sample's own pixels where samples are mixed in pairs (`Augmentation.partners`); 1 mixes none.
    mix_weight: Weight = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite or below 0, and a ragged list of samples."""
        check_finite(lr=self.lr, mix_weight=self.mix_weight)
        check_packed(samples=self.samples)

    @property
    def num_samples(self) -> int:
        """Number of samples in the mini-batch."""
        return len(self.samples) // 8

    def sample_indices(self) -> NDArray[np.int64]:
        """Return the sample indices (B,) int64, read-only."""
        return unpack_samples(self.samples)

    def __repr__(self) -> str:
        """Return a short form, with the number of samples in place of their bytes."""
        return f"Plan({self.id}, {self.mode}, lr={self.lr:g}, {self.num_samples} samples)"


def pack_samples(indices: ArrayLike) -> bytes:
    """Return sample indices or classes (B,) as `Plan.samples`, `Adapt.classes` and `Adapt.others` carry them."""
    return np.asarray(indices, dtype="<i8").tobytes()


def unpack_samples(packed: bytes) -> NDArray[np.int64]:
    """Return the samples (B,), int64 and read-only, that `pack_samples` packed."""
    return np.frombuffer(packed, dtype="<i8")


def pack_mask(mask_N: NDArray[np.bool_]) -> bytes:
    """Return a mask (N,) with 8 samples to a byte, the first in the highest bit."""
    return np.packbits(mask_N).tobytes()


def unpack_mask(packed: bytes, num_samples: int) -> NDArray[np.bool_]:
    """Return the mask (N,) that `pack_mask` packed; raises ValueError unless it is of N samples."""
    if len(packed) != -(-num_samples // 8):
        raise ValueError(f"expected a mask of {num_samples} samples, got {len(packed)} bytes")
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=num_samples).astype(np.bool_)


def check_finite(**numbers: float) -> None:
    """Raise ValueError, which msgspec reports as a malformed record, unless all are finite and at least 0."""
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name}: expected a finite number, at least 0, got {number}")


def check_packed(**indices: bytes) -> None:
    """Raise ValueError unless all are as `pack_samples` makes them."""
    for name, packed in indices.items():
        if len(packed) % 8 or len(packed) > 8 * MAX_SAMPLES:
            raise ValueError(f"{name}: expected 8 bytes each, at most {MAX_SAMPLES}, got {len(packed)} bytes")
