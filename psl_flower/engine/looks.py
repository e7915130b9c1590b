"""The Lower's file store of what frozen Uppers sent for every view of every image, so that it trains without nodes.

There is a file for each Upper, for this user alone:

    MAGIC, version (1 byte), length of the head (4 bytes), the head as MessagePack, SHA-256 of all that
    then for each batch of `psl_flower.engine.task.Task.look_plans`: a record for each image, and a SHA-256

Records are of one length: an image's smashed data in a codec that loses nothing of what was received. A batch's SHA-256
covers that of the head, its number and its records, so batches cannot change places or files. A last batch that a crash
left incomplete is asked for again, which shows nothing new: a frozen Upper's answer is the same. All numbers are
little-endian.

Shape suffixes: B batch, K positions of one Upper, h, w and C of a patch's smashed data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.engine.build import Blueprint
from psl_flower.engine.exchange import Down, Exchange
from psl_flower.engine.task import Task
from psl_flower.errors import RunError
from psl_flower.system.files import disk_errors, open_regular
from psl_flower.system.folders import make_private_folder
from psl_flower.text import counted
from psl_flower.wire.codecs import get_codec
from psl_flower.wire.messages import Step
from psl_flower.wire.plan import Plan

log = logging.getLogger("psl_flower")

MAGIC, VERSION = b"PSLLOOKS", 1
_FIXED = struct.Struct("<8sBI")
_DIGEST_BYTES = 32
# Characters of a run's identity.
_IDENTITY = 32


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names whose looks a file holds, and of which run and images."""

    run: str  #: Identity of the run.
    dataset: str  #: Fingerprint of the set of stores.
    upper: int  #: Upper that the smashed data come from.
    after: int  #: Number of steps that it was trained for.
    shape: tuple[int, int, int, int]  #: (K, h, w, C) of an image's smashed data.
    codec: str  #: Codec of a record.
    batches: int  #: Number of batches of all looks.
    images: int  #: Number of records in all batches.

    @property
    def encoded(self) -> bytes:
        """The first bytes of its file."""
        content = msgspec.msgpack.encode(self)
        fixed = _FIXED.pack(MAGIC, VERSION, len(content)) + content
        return fixed + hashlib.sha256(fixed).digest()

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole file."""
        records = self.images * get_codec(self.codec).nbytes(self.shape)
        return len(self.encoded) + records + self.batches * _DIGEST_BYTES


class LookFile:
    """The looks of one Upper: batches are appended in their order, then records are read in any.

    The file is made when the first batch is appended, and must hold `head`; `sizes` are the images of each batch.

    Raises
    ------
    RunError
        If the file is another one's, damaged, or cannot be read.

    Attributes
    ----------
    done : int
        Whole batches in the file.
    """

    def __init__(self, path: Path, head: Head, sizes: Sequence[int]) -> None:
        self._path, self._codec = path, get_codec(head.codec)
        self._shape, self._sizes = head.shape, list(sizes)
        self._record = self._codec.nbytes(head.shape)
        # Codes whose records do not fill their bytes cannot be read in one piece.
        self._dense = self._codec.nbytes((8, *head.shape)) == 8 * self._record
        self._head = head.encoded
        images = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        # Where each batch begins, and the end of the last.
        self._starts = len(self._head) + images * self._record + np.arange(len(images)) * _DIGEST_BYTES
        self._firsts = images
        self.done = 0
        self._content: NDArray[np.uint8] | None = None
        if path.exists():
            self.done = self._checked()

    @property
    def complete(self) -> bool:
        """Whether the file holds all batches."""
        return self.done == len(self._sizes)

    def append(self, smashed_BKhwC: torch.Tensor) -> None:
        """Add the next batch; raises RunError if the disk refuses."""
        assert len(smashed_BKhwC) == self._sizes[self.done]
        parts = [smashed_BKhwC] if self._dense else list(smashed_BKhwC)
        records = b"".join(bytes(piece) for part in parts for piece in self._codec.encode(part))
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_errors(self._path, "written", RunError):
            descriptor = os.open(self._path, flags, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.truncate(int(self._starts[self.done]) if self.done else 0)
                file.seek(0, os.SEEK_END)
                if not self.done:
                    file.write(self._head)
                file.write(records + self._digest(self.done, records))
                if self.done + 1 == len(self._sizes):
                    file.flush()
                    os.fsync(file.fileno())
        self.done += 1

    def read(self, places_B: NDArray[np.int64]) -> torch.Tensor:
        """Return the records (B, K, h, w, C), float32, at these places among all images, once it is complete."""
        if self._content is None:
            with disk_errors(self._path, "read", RunError):
                self._content = np.memmap(self._path, np.uint8, "r")
        batch_B = np.searchsorted(self._firsts, places_B, side="right") - 1
        starts = (self._starts[batch_B] + (places_B - self._firsts[batch_B]) * self._record).tolist()
        records = [self._content[start : start + self._record].tobytes() for start in starts]
        if self._dense:
            return self._codec.decode(bytearray(b"".join(records)), (len(records), *self._shape))
        return torch.stack([self._codec.decode(bytearray(record), self._shape) for record in records])

    def _digest(self, number: int, records: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(self._head[-_DIGEST_BYTES:])
        digest.update(number.to_bytes(8, "little"))
        digest.update(records)
        return digest.digest()

    def _checked(self) -> int:
        """Return the number of whole batches of the file."""
        with disk_errors(self._path, "read", RunError), os.fdopen(open_regular(self._path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > self._starts[-1]:
                raise self._damaged("it is longer than it should be")
            head = file.read(len(self._head))
            if len(head) < len(self._head):
                return 0
            if head != self._head:
                raise self._damaged(_head_problem(head))
            for number, images in enumerate(self._sizes):
                records = file.read(images * self._record)
                whole = file.read(_DIGEST_BYTES) == self._digest(number, records)
                if not whole and self._starts[number + 1] >= size:
                    return number  # the last one, as a crash may leave it
                if not whole:
                    raise self._damaged(f"batch {number} was changed")
        return len(self._sizes)

    def _damaged(self, why: str) -> RunError:
        return RunError(
            f"{self._path}: looks of the nodes cannot be used: {why}; delete the file, and the nodes are asked again"
        )


def _head_problem(head: bytes) -> str:
    """Describe how a head differs from the one expected."""
    magic, version, _ = _FIXED.unpack(head[: _FIXED.size])
    if magic != MAGIC:
        return "it is no such file"
    if version != VERSION:
        return f"version {version} is not known, only {VERSION}"
    return "they are of another run, or of other settings"


class Looks:
    """The looks of all Uppers of a run.

    Parameters
    ----------
    folder : Path
        Made for this user alone when the first look is kept.
    task : Task
        Of the training, whose Uppers are frozen with `views`.
    shapes : mapping
        (K, h, w, C) of each Upper's smashed data of an image.
    activations : str
        Wire codec of smashed data.
    run, dataset : str
        Identity of the run; fingerprint of its set of stores.

    Raises
    ------
    RunError
        See `LookFile`.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        shapes: Mapping[int, tuple[int, int, int, int]],
        activations: str,
        *,
        run: str,
        dataset: str,
    ) -> None:
        assert task.freezing is not None
        self._folder, self._task = folder, task
        kept = _kept_codec(activations)
        sizes = [plan.num_samples for plan in task.look_plans()]
        heads = {
            m: Head(
                run=run, dataset=dataset, upper=m, after=task.freezing.after, shape=shape, codec=kept,
                batches=len(sizes), images=sum(sizes),
            )
            for m, shape in shapes.items()
        }  # fmt: skip
        self._files = {m: LookFile(folder / f"upper-{m:03d}.looks", head, sizes) for m, head in heads.items()}

    @property
    def complete(self) -> tuple[int, ...]:
        """The Uppers whose looks are all kept."""
        return tuple(m for m, file in self._files.items() if file.complete)

    @property
    def batches_kept(self) -> int:
        """Batches kept, of all Uppers."""
        return sum(file.done for file in self._files.values())

    def collect(
        self,
        exchange: Exchange,
        present: Collection[int],
        shapes: Callable[[Plan], Mapping[int, tuple[int, ...]]],
        after_batch: Callable[[], None],
    ) -> None:
        """Ask the Uppers that are present for the looks still missing, and keep them.

        `shapes` returns the shape of each answer to a plan. If `after_batch`, called after every batch, raises,
        collection ends and keeps what it has. Raises PslError as the transport does, and RunError if the disk refuses.
        """
        with disk_errors(self._folder, "made", RunError):
            make_private_folder(self._folder)
        for number, plan in enumerate(self._task.look_plans()):
            wanting = [m for m in present if self._files[m].done <= number]
            if not wanting:
                continue
            expected = shapes(plan)
            # All of them: a node serves its Uppers in turn, and would wait for one that is not asked.
            down = {m: Down(Step(plan=plan)) for m in present}
            answers = exchange.exchange(down, {m: expected[m] for m in present}, meanwhile=lambda: None)
            for m in wanting:
                tensor = answers[m].tensor
                assert tensor is not None
                self._files[m].append(tensor)
            after_batch()
        assert self._task.freezing is not None
        views = self._task.freezing.views
        log.info(
            "the Uppers are frozen; %s of each training image %s kept here, so the nodes send nothing more",
            counted(views, "view"), "is" if views == 1 else "are",
        )  # fmt: skip

    def read(self, plan: Plan) -> dict[int, torch.Tensor]:
        """Return the smashed data (B, K, h, w, C), float32, of a plan's samples, by Upper that is complete."""
        places_B = self._task.places(plan)
        return {m: self._files[m].read(places_B) for m in self.complete}


def _kept_codec(activations: str) -> str:
    """Return the codec of records for a wire codec: what was received is kept without loss."""
    return activations if get_codec(activations).keeps_values_by_sample else "float32"


def looks_bytes(blueprint: Blueprint, counts: Sequence[int]) -> int:
    """Return the bytes that a training's looks take on the disk.

    `counts` are the images of each view that is kept, and those to validate and test on.
    """
    config, description = blueprint.config, blueprint.description
    batches = sum(-(-count // config.training.evaluate_batch_size) for count in counts)
    heads = (
        Head(
            run="0" * _IDENTITY, dataset=description.fingerprint, upper=m, after=0, shape=shape,
            codec=_kept_codec(config.smashed_codec), batches=batches, images=sum(counts),
        )
        for m, shape in blueprint.smashed_shapes().items()
    )  # fmt: skip
    return sum(head.num_bytes for head in heads)


def looks_of(blueprint: Blueprint, task: Task, folder: Path, run: str) -> Looks | None:
    """Return where a training keeps the looks of frozen Uppers; None if it keeps none. Raises RunError as `Looks`."""
    if task.freezing is None or not task.freezing.views:
        return None
    description = blueprint.description
    return Looks(
        folder, task, blueprint.smashed_shapes(), blueprint.config.smashed_codec,
        run=run, dataset=description.fingerprint,
    )  # fmt: skip
