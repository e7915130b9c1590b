"""What the tests of sealed stores share: a source made of arrays, people with keys, and a disk that crashes.

Shape suffixes: N images, H and W pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from psl_flower.patches.store import read_all_positions
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.ingest import Ingested, IngestPlan, ingest
from psl_flower.sealed.manifest import SignedManifest
from psl_flower.sealed.store import SealedStore
from psl_flower.system.files import DISK, Disk


class ArraySource:
    """A dataset in memory: random images (N, H, W, C) of a seed; labels count through the classes."""

    def __init__(
        self,
        train: int = 5,
        test: int = 2,
        shape: tuple[int, int, int] = (4, 4, 1),
        classes: int = 3,
        seed: int = 0,
    ) -> None:
        self.name = "arrays"
        self.class_names = tuple(f"class {k}" for k in range(classes))
        self.fingerprint = f"{train} {test} {shape} {classes} {seed}"
        rng = np.random.default_rng(seed)
        self.images = {
            split: rng.integers(0, 256, (count, *shape), np.uint8)
            for split, count in (("train", train), ("test", test))
        }

    def num_samples(self, split: str) -> int:
        return len(self.images[split])

    def where(self, split: str, number: int) -> str:
        return f"image {split}:{number}"

    def samples(
        self, split: str, start: int = 0, order_N: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, int]]:
        numbers = range(len(self.images[split])) if order_N is None else order_N.tolist()
        for number in numbers[start:]:
            yield self.images[split][number], number % len(self.class_names)

    @property
    def all_NCHW(self) -> np.ndarray:
        """Images in the order of their global indices."""
        return np.concatenate([self.images["train"], self.images["test"]]).transpose(0, 3, 1, 2)

    @property
    def all_labels(self) -> list[int]:
        return [label for split in ("train", "test") for _, label in self.samples(split)]


@dataclass
class World:
    """An owner, nodes, restorers, a Lower, and a folder."""

    out: Path
    owner: Identity = field(default_factory=lambda: Identity.generate(Role.OWNER, "owner"))
    lower: Identity = field(default_factory=lambda: Identity.generate(Role.LOWER, "lower"))
    nodes: list[Identity] = field(default_factory=lambda: [Identity.generate(Role.NODE, f"node{m}") for m in range(2)])
    restorers: list[Identity] = field(
        default_factory=lambda: [Identity.generate(Role.RESTORER, name) for name in ("alice", "bob", "carol")]
    )
    threshold: int = 2

    def at(self, out: Path) -> World:
        """Return the same people with another folder."""
        return replace(self, out=out)

    def plan(
        self, patch: tuple[int, int] = (2, 2), stride: tuple[int, int] | None = None, **more: object
    ) -> IngestPlan:
        settings: dict[str, object] = {"lower": self.lower.public, **more}
        return IngestPlan(
            patch_size=patch,
            stride=stride or patch,
            nodes=tuple(node.public for node in self.nodes),
            restorers={r.name: r.public for r in self.restorers},
            threshold=self.threshold,
            **settings,  # type: ignore[arg-type]
        )

    def seal(
        self,
        source: ArraySource,
        plan: IngestPlan | None = None,
        *,
        append: bool = False,
        disk: Disk = DISK,
        places: Mapping[int, str] | None = None,
    ) -> Ingested:
        return ingest(source, self.out, self.owner, plan or self.plan(), append=append, disk=disk, places=places)

    def place(self, upper: int) -> Path:
        return self.out / f"store-{upper:03d}"

    @property
    def places(self) -> list[Path]:
        return [self.place(m) for m in range(len(self.nodes))]

    @property
    def signed(self) -> SignedManifest:
        return manifests.load(self.out, self.owner.public)

    def open(self, upper: int) -> SealedStore:
        return SealedStore.open(self.place(upper), self.nodes[upper], owner=self.owner.public)

    def images(self) -> np.ndarray:
        """Put all images together from all stores, as each store's own manifest has it."""
        stores = [self.open(m) for m in range(len(self.nodes))]
        patches = read_all_positions(stores, np.arange(len(stores[0])))
        for store in stores:
            store.close()
        return manifests.load(self.place(0)).manifest.description.grid().merge(patches)


class Killed(BaseException):
    """The process ends here."""


class CrashingDisk(Disk):
    """A disk that kills the process at its n-th operation.

    With `power_cut`, what was not synchronised is lost as well: content of files, renames and removals. Of a
    write, the first half is still done.
    """

    def __init__(self, at: int = 1 << 60, *, power_cut: bool = False) -> None:
        self.count = 0
        self._at, self._power_cut = at, power_cut
        self._undo: list[tuple[Path, bytes | None]] = []
        self._dirty: set[Path] = set()

    def _step(self) -> None:
        self.count += 1
        if self.count == self._at and self._power_cut:
            self.lose()
        # A dead process cleans nothing up either.
        if self.count >= self._at:
            raise Killed

    def lose(self) -> None:
        """Forget what was not synchronised, as if the power went now."""
        for path, before in reversed(self._undo):
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)
        for path in self._dirty:
            if path.exists():
                path.write_bytes(b"")

    def make_folder(self, path: Path) -> None:
        if not path.exists():
            self._step()
        super().make_folder(path)

    def create(self, path: Path, mode: int = 0o644) -> int:
        self._step()
        self._undo.append((path, path.read_bytes() if path.exists() else None))
        self._dirty.add(path)
        return super().create(path, mode)

    def write(self, descriptor: int, data: bytes, path: Path) -> None:
        self._dirty.add(path)
        if self.count + 1 == self._at:
            os.write(descriptor, data[: len(data) // 2])
        self._step()
        super().write(descriptor, data, path)

    def sync(self, descriptor: int, path: Path) -> None:
        self._step()
        super().sync(descriptor, path)
        self._dirty.discard(path)

    def sync_folder(self, path: Path) -> None:
        self._step()
        super().sync_folder(path)
        self._undo = [(file, before) for file, before in self._undo if file.parent != path]

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        self._undo.append((target, target.read_bytes() if target.exists() else None))
        super().rename(source, target)
        self._dirty.discard(target)
        if source in self._dirty:
            self._dirty.remove(source)
            self._dirty.add(target)

    def remove(self, path: Path) -> None:
        self._step()
        if path.exists():
            self._undo.append((path, path.read_bytes()))
        super().remove(path)
