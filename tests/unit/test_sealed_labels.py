"""Label versions: what others committed in the meantime is never written over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from psl_flower import errors
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from tests.unit.tiny_sealed import content
from tests.vectors.sealed_support import ArraySource, World

SOURCE, MORE = ArraySource(6, 3), ArraySource(2, 1, seed=1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path / "out")
    found.seal(SOURCE)
    return found


@pytest.mark.parametrize("what", ["append", "rotation"])
def test_a_correction_that_others_overtook_is_refused_and_destroys_nothing(world: World, what: str) -> None:
    old = world.signed.manifest
    if what == "append":
        world.seal(MORE, append=True)
        expected = SOURCE.all_labels + MORE.all_labels
    else:
        rotate(world.out, world.owner, world.places, Changes())
        expected = SOURCE.all_labels
    before, book, alice = content(world.out), LabelBook(world.out), world.restorers[0]
    with pytest.raises(errors.LabelError, match=r"changed meanwhile \(generation 2\); run it again"):
        book.relabel(old, alice, [(0, 2)], "misread")
    assert content(world.out) == before
    assert book.read(world.signed.manifest, world.lower).labels_N.tolist() == expected
    assert book.relabel(world.signed.manifest, alice, [(0, 2)], "misread") == 2
    assert book.read(world.signed.manifest, world.lower).labels_N.tolist() == [2, *expected[1:]]


def test_a_generation_that_does_not_follow_the_newest_adds_no_labels(world: World) -> None:
    """As of a draft that was overtaken: its version has the number of one that the manifest names."""
    old, labels = world.signed.manifest, np.zeros(9, np.int64)
    world.seal(MORE, append=True)
    before, book = content(world.out), LabelBook(world.out)
    for manifest in (old, world.signed.manifest):
        with pytest.raises(errors.LabelError, match="changed meanwhile"):
            book.add_images(manifest, world.owner, first=0, labels=labels)
        with pytest.raises(errors.LabelError, match="changed meanwhile"):
            book.add_snapshot(manifest, world.owner, labels, "rotation")
    assert content(world.out) == before
