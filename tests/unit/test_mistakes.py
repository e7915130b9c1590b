"""Which predictions of a run count: of each split the newest that are whole, wherever they were made."""

import os

import numpy as np
import pytest

from psl_flower.errors import OtherDataset, RunError
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.mistakes import Mistake, check_dataset, mistakes
from psl_flower.runs.predictions import FOLDER, Absent, Result, save_result
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.seen import SeenBook
from psl_flower.stores.sealed_set import open_sealed_dataset
from tests.vectors.sealed_support import ArraySource, World

WRONG_TEST, WRONG_TRAIN = Mistake(24, 1, 2, 0.5), Mistake(3, 1, 2, 0.75)


def write(folder, of, sample, predicted, confidence, age_s=0, **result):
    """Write predictions of two images, the first of class 1, the second right."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "predictions.npz",
        sample=np.array([sample, sample + 1]),
        label=np.array([1, 4]),
        predicted=np.array([predicted, 4]),
        confidence=np.array([confidence, 0.9], np.float32),
        split=np.array([of, of]),
    )
    if result:
        save_result(RunFolder(folder), Result(run="first", step=2, images=2, accuracy=0.5, loss=1.0, **result))
    when = 1.7e9 - age_s
    os.utime(folder / "predictions.npz", (when, when))


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "first", "test", 24, 2, 0.5, age_s=60)
    return tmp_path / "first"


def test_the_runs_own(run):
    assert mistakes(run) == mistakes(run, split="test") == [WRONG_TEST]
    assert mistakes(run / "predictions.npz") == [WRONG_TEST]


def test_a_split_that_was_not_predicted(run):
    words = (
        r"holds predictions of test images; for those of the train split: psl predict --in-place first --split train"
    )
    with pytest.raises(RunError, match=words):
        mistakes(run, split="train")


def test_both_splits(run):
    write(run / FOLDER / "later", "train", 3, 2, 0.75, split="train")
    assert mistakes(run, split="train") == [WRONG_TRAIN]
    assert mistakes(run, split="test") == [WRONG_TEST]
    assert mistakes(run) == [WRONG_TRAIN, WRONG_TEST]
    assert mistakes(run, limit=1) == [WRONG_TRAIN]
    assert mistakes(run / FOLDER / "later") == [WRONG_TRAIN]


def test_a_run_without_an_evaluation_of_its_own(run):
    (run / "predictions.npz").unlink()
    with pytest.raises(RunError, match=r"predictions\.npz does not exist: evaluate the run first"):
        mistakes(run)
    write(run / FOLDER / "later", "train", 3, 2, 0.75, split="train")
    assert mistakes(run) == [WRONG_TRAIN]


def test_the_newest_count(run):
    write(run / FOLDER / "b", "test", 24, 7, 0.5, age_s=90, split="test")
    assert mistakes(run) == [WRONG_TEST]
    write(run / FOLDER / "a", "test", 24, 8, 0.5, age_s=30, split="test")
    assert [mistake.predicted for mistake in mistakes(run)] == [8]


NOT_WHOLE = [{}, {"split": ""}, {"split": "test", "absent": (Absent(upper=0, positions=(0,)),)}]


@pytest.mark.parametrize("result", NOT_WHOLE, ids=["unfinished", "named images", "an absent node"])
def test_predictions_that_are_not_whole_count_only_if_named(run, result):
    assert NOT_WHOLE
    write(run / FOLDER / "partial", "test", 24, 9, 0.5, **result)
    assert mistakes(run) == [WRONG_TEST]
    assert [mistake.predicted for mistake in mistakes(run / FOLDER / "partial")] == [9]


def test_corrected_labels(run):
    labels_N = np.zeros(30, np.int64)
    assert mistakes(run, labels_N=labels_N) == [WRONG_TEST]
    labels_N[24] = 2
    assert mistakes(run, labels_N=labels_N) == []
    with pytest.raises(RunError, match="its images are not those of this dataset"):
        mistakes(run, labels_N=labels_N[:24])


@pytest.mark.parametrize(
    "name", ["predictions.npz", "predictions/later/predictions.npz", "predictions/later/result.json"]
)
def test_damage(run, name):
    write(run / FOLDER / "later", "train", 3, 2, 0.75, split="train")
    (run / name).write_bytes(b"no")
    with pytest.raises(RunError, match=r"damaged|cannot be read"):
        mistakes(run)


def began_on(run, world):
    """Note in a run's folder what its stores are, as a run does."""
    keys = run.parent / "lower.key"
    if not keys.exists():
        keyfile.save(world.lower, keys)
    stores = open_sealed_dataset(world.out, keys, "", SeenBook(run.parent / "seen"))
    RunFolder(run).write_description(stores.description)


def test_a_run_counts_for_every_generation_of_its_dataset(run, tmp_path):
    world = World(tmp_path / "sealed", nodes=[Identity.generate(Role.NODE, f"node{m}") for m in range(4)])
    world.seal(ArraySource(6, 3))
    write(run / FOLDER / "later", "train", 3, 2, 0.75, split="train")
    began_on(run, world)
    first = world.signed.manifest
    world.seal(ArraySource(4, 2, seed=1), append=True)
    LabelBook(world.out).relabel(world.signed.manifest, world.restorers[0], [(0, 2)], "misread")
    rotate(world.out, world.owner, world.places, Changes(drop_nodes=(1,)))
    newest = world.signed.manifest
    assert (newest.num_samples, newest.epoch) == (15, 2) and newest.assignment != first.assignment
    for place in (run, run / "predictions.npz", run / FOLDER / "later", run / FOLDER / "later" / "predictions.npz"):
        check_dataset(place, newest)
    began_on(run, world)
    check_dataset(run, newest)


def test_a_run_on_another_dataset_is_refused(run, tmp_path):
    world, other = World(tmp_path / "sealed"), World(tmp_path / "other")
    with pytest.raises(RunError, match="has no manifest.json; give the folder of a run"):
        check_dataset(run, other.seal(ArraySource(6, 3)).signed.manifest)
    world.seal(ArraySource(6, 3))  # the same images
    began_on(run, world)
    for place in (run, run / "predictions.npz"):
        with pytest.raises(OtherDataset, match="was a run on other stores"):
            check_dataset(place, other.signed.manifest)
