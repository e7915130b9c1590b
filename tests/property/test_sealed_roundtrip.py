"""Sealed stores give back what was put in, whatever its size, and share nothing with each other."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psl_flower.errors import DataError
from psl_flower.patches.store import PatchStore
from psl_flower.sealed import merkle
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.header import header_bytes
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.records import SampleIds
from psl_flower.sealed.restore import restore
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.url_folder import shown
from psl_flower.sealed.verify import verify
from tests.vectors.sealed_support import ArraySource, World

PEOPLE = World(Path(), nodes=[Identity.generate(Role.NODE, f"node{m}") for m in range(4)])


@settings(max_examples=25, deadline=None)
@given(
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    tiles=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    overlap=st.booleans(),
    channels=st.integers(1, 4),
    train=st.integers(1, 40),
    test=st.integers(0, 3),
    num_nodes=st.integers(1, 4),
    margin=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_images_come_back_bit_for_bit(
    patch: tuple[int, int],
    tiles: tuple[int, int],
    overlap: bool,
    channels: int,
    train: int,
    test: int,
    num_nodes: int,
    margin: int,
    seed: int,
) -> None:
    stride = (max(1, patch[0] // 2), max(1, patch[1] // 2)) if overlap else patch
    size = tuple(p + (n - 1) * s for p, n, s in zip(patch, tiles, stride, strict=True))
    source = ArraySource(train, test, (size[0], size[1], channels), seed=seed)
    num_nodes, margin = min(num_nodes, tiles[0] * tiles[1]), min(margin, *(side - 1 for side in size))
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "out", PEOPLE.owner, PEOPLE.lower, PEOPLE.nodes[:num_nodes], PEOPLE.restorers)
        world.seal(source, world.plan(patch, stride, margin=margin))
        log = AuditLog(world.out / "audit.log")
        images = list(range(train + test))[::-1]
        found = np.concatenate(list(restore(world.signed, world.places, world.restorers[:2], images, why="", log=log)))
        assert (found == source.all_NCHW[::-1]).all()
        assert verify(world.places, world.signed).ok
        labels = LabelBook(world.out).read(world.signed.manifest, world.lower)
        assert labels.labels_N.tolist() == source.all_labels
        share_nothing(world)


def share_nothing(world: World) -> None:
    """Check that no two stores share a sample id, a nonce, a salt, a key box or a block of ciphertext."""
    seen: set[bytes] = set()
    pieces = 0
    for entry in world.signed.manifest.stores:
        shape = world.signed.manifest.description.stored_shape
        length = len(entry.positions) * shape[0] * shape[1] * shape[2]
        head, record = header_bytes(len(entry.positions)), 44 + length
        for file in sorted(world.place(entry.upper).glob("epoch-*")):
            data = file.read_bytes()
            new = [data[96:128], data[32:48] if file.name.endswith("000000.psl") else data[head - 32 : head]]
            for slot in range((len(data) - head) // (record + 32)):
                part = data[head + slot * record : head + (slot + 1) * record]
                # Short ciphertexts may be equal by chance; 16-byte blocks may not.
                new += [part[:16], part[16:28], part[-16:]]
                new += [part[28 + k : 44 + k] for k in range(0, length - 15, 16)]
            pieces += len(new)
            seen.update(new)
    assert len(seen) == pieces


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 2**40), count=st.integers(0, 70), block=st.integers(1, 30))
def test_slots_are_a_permutation_within_blocks(first: int, count: int, block: int) -> None:
    names = SampleIds(Secret(b"k" * 32), b"s" * 16)
    ids, slots = names.order(first, count, block)
    assert sorted(slots.tolist()) == list(range(count))
    assert (slots // block == np.arange(count) // block).all()
    assert [ids[slot] for slot in slots] == names.of(range(first, first + count))


def test_ids_do_not_follow_the_order_of_samples() -> None:
    slots = SampleIds(Secret(b"k" * 32), b"s" * 16).order(0, 1000, 1000)[1]
    other = SampleIds(Secret(b"l" * 32), b"s" * 16).order(0, 1000, 1000)[1]
    assert abs(np.corrcoef(slots, np.arange(1000))[0, 1]) < 0.15
    assert abs(np.corrcoef(slots, other)[0, 1]) < 0.15


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 70))
def test_merkle_root_is_that_of_rfc_6962(count: int) -> None:
    leaves = [merkle.leaf(bytes([k])) for k in range(count)]

    def plain(part: list[bytes]) -> bytes:
        if len(part) <= 1:
            return part[0] if part else merkle.EMPTY_ROOT
        split = 1 << (len(part) - 1).bit_length() - 1
        return merkle._node(plain(part[:split]), plain(part[split:]))

    assert merkle.root(leaves) == plain(leaves)


def test_appending_and_reading_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psl_flower.sealed.ingest.sizes", lambda *_: (8, 4))
    world = World(tmp_path / "out")
    first, second = ArraySource(21, 4), ArraySource(10, 5, seed=1)
    world.seal(first)
    assert world.seal(second, append=True).before == 25
    everything = np.concatenate([first.all_NCHW, second.all_NCHW])
    manifest = world.signed.manifest
    assert [(part.name, part.first, part.count) for part in manifest.splits] == [
        ("train", 0, 21),
        ("test", 21, 4),
        ("train", 25, 10),
        ("test", 35, 5),
    ]
    assert manifest.description.samples_of("test").tolist() == [*range(21, 25), *range(35, 40)]
    assert manifest.description.samples_of("other").tolist() == []
    assert manifest.description.split_of(26) == ("train", 22)
    assert manifest.description.sample_of("train", 22) == 26
    train = np.concatenate([first.images["train"], second.images["train"]])
    assert manifest.pixels.mean == pytest.approx((train.mean() / 255,))
    assert manifest.pixels.std == pytest.approx((train.std() / 255,))
    store = world.open(1)
    assert isinstance(store, PatchStore)
    assert (store.meta.num_samples, store.meta.upper, len(store)) == (40, 1, 40)
    expected = manifest.description.grid().split(everything)[:, list(store.meta.positions)]
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 128):
        samples = rng.integers(0, 40, size)
        assert (store.read(samples) == expected[samples]).all()
    store.close()
    store.close()


def test_a_grid_that_needs_padding(tmp_path: Path) -> None:
    world, source = World(tmp_path / "out"), ArraySource(3, 1, (5, 7, 3))
    world.seal(source, world.plan((4, 4), fit="pad"))
    assert (world.images() == source.all_NCHW).all()


def test_a_dataset_without_images_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path / "out")
    with pytest.raises(DataError):
        world.seal(ArraySource(0, 0))
    assert not (world.out / "manifest.psl").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psl_flower.sealed.ingest.sizes", lambda *_: (1024, 256))

    class Endless(ArraySource):
        """The same image again and again."""

        def __init__(self, count: int) -> None:
            super().__init__(1, 0, (32, 32, 3))
            self.count = count

        def num_samples(self, split: str) -> int:
            return self.count if split == "train" else 0

        def samples(
            self, split: str, start: int = 0, order_N: np.ndarray | None = None
        ) -> Iterator[tuple[np.ndarray, int]]:
            for _ in range(start, self.num_samples(split)):
                yield self.images["train"][0], 0

    peaks: list[int] = []
    for count in (2048, 2048, 12288):
        world = World(tmp_path / str(len(peaks)))
        tracemalloc.start()
        world.seal(Endless(count), world.plan((16, 16)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 10 * 10240 * 4  # labels: four bytes an image, a few copies


@pytest.mark.slow
def test_reading_random_batches_is_fast(tmp_path: Path) -> None:
    """A batch of 128 of CIFAR-10 from 4 stores in 50 ms, which is 5 % of a training step of one second."""
    world = World(tmp_path / "out", nodes=PEOPLE.nodes)
    world.seal(ArraySource(4000, 0, (32, 32, 3)), world.plan((16, 16)))
    stores = [world.open(m) for m in range(4)]
    rng, times = np.random.default_rng(0), []
    for _ in range(21):
        samples = rng.integers(0, 4000, 128)
        start = time.perf_counter()
        for store in stores:
            store.read(samples)
        times.append(time.perf_counter() - start)
    assert np.median(times[1:]) < 0.05


def test_the_sample_order_is_the_same_in_all_stores(tmp_path: Path) -> None:
    world = World(tmp_path / "out")
    source = ArraySource(9, 3)
    world.seal(source)
    assert (world.images() == source.all_NCHW).all()


def test_a_store_at_a_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/store"
    world = World(tmp_path / "out")
    source = ArraySource(20, 2)
    world.seal(source, places={1: url})
    assert not world.place(1).exists()
    store = SealedStore.open(url, world.nodes[1], owner=world.owner.public)
    grid = world.signed.manifest.description.grid()
    samples = np.array([5, 0, 21, 5])
    expected = grid.split(source.all_NCHW)[samples][:, list(store.meta.positions)]
    assert (store.read(samples) == expected).all()
    assert verify([world.place(0), url], world.signed).ok
    import fsspec

    files = fsspec.filesystem("memory")
    name = next(path for path in files.find(f"/{tmp_path.name}") if "segment" in path)
    files.pipe(name, files.cat(name)[:-1])
    assert [p.error for s in verify([world.place(0), url], world.signed).stores for p in s.problems] == [
        "TruncatedFile"
    ]


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("s3://key:secret@bucket/store?token=abc", "s3://bucket/store"),
        ("sftp://me@host:22/x/y", "sftp://host:22/x/y"),
        ("ftp://me:pass/w?o#rd@host/x", "ftp://host/x"),
        ("simplecache::ftp://me:pass@host/x", "simplecache::ftp://host/x"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("/a/b@c", "/a/b@c"),
    ],
)
def test_places_are_shown_without_credentials(place: str, text: str) -> None:
    assert shown(place) == text
