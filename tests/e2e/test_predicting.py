"""A trained run predicts where it lies: the very answers of its own evaluation, and wrong training images restored."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from psl_flower.data.sources import open_dataset
from psl_flower.runs.predictions import FOLDER, load_result
from tests.e2e.conftest import TINY, Place, last_json

COLUMNS = ("sample", "label", "predicted", "confidence", "split")


def columns(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in COLUMNS}


def test_predictions_in_place(place: Place, tmp_path: Path) -> None:
    place.environment["PSL_STATE"] = str(place.workspace / "memory")
    done = place.psl(
        "train",
        *TINY,
        "rounds=1",
        "steps-per-round=3",
        "wire-activations=bfloat16",
        "collect-model=false",
        "run-name=first",
    )
    assert done.returncode == 0, done.stderr
    run = place.run("first")
    own = columns(run.path / "predictions.npz")

    done = place.psl("predict", "--in-place", "first", "--json")
    assert done.returncode == 0, done.stderr
    answer = last_json(done.stdout)
    assert "32 of 32 images" in done.stderr and "left" in done.stderr
    assert (answer["run"], answer["step"], answer["split"], answer["images"]) == ("first", 3, "test", 32)
    assert (answer["accuracy"], answer["absent"]) == (run.read_metrics()[-1]["accuracy"], [])
    found = columns(Path(answer["predictions"]))
    assert all(np.array_equal(found[name], own[name]) for name in COLUMNS)
    assert not run.model.exists()

    # The same by `flwr run` itself, with Flower's two nodes and one slot: the flower transport; one Upper left out.
    config = "predict='first' predict-split='train' run-name='train' predict-without='2'"
    done = place.flwr("run", ".", "--stream", "--run-config", config)
    result = load_result(run.path / FOLDER / "train")
    assert result is not None, done.stdout + done.stderr
    assert (result.images, [part.upper for part in result.absent]) == (96, [2])
    (manifest,) = (place.workspace / "stores").glob("*/manifest.psl")
    people = [word for n in (1, 2) for word in ("--identity", str(place.workspace / "keys" / f"restorer-{n}.key"))]
    restoring = ["restore", "--manifest", str(manifest), *people, "--why", "a look", "--wrong-only", str(run.path)]
    done = place.psl(*restoring, "--split", "train", "--out", str(tmp_path / "early"))
    assert done.returncode == 1 and "psl predict --in-place first --split train" in done.stderr

    done = place.psl("predict", "--in-place", "first", "--split", "train")
    assert done.returncode == 0, done.stderr
    assert "first after 3 steps: 96 train images, accuracy " in done.stdout
    done = place.psl(*restoring, "--split", "train", "--out", str(tmp_path / "wrong"))
    assert done.returncode == 0, done.stderr
    (folder,) = (folder for folder in (run.path / FOLDER).glob("train-*"))
    train = columns(folder / "predictions.npz")
    wrong = np.flatnonzero(train["label"] != train["predicted"])
    with (tmp_path / "wrong" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["image"]) for row in rows) == train["sample"][wrong].tolist() != []
    originals = [image[:, :, 0] for image, _ in open_dataset("digits", max_train=96, max_test=32).samples("train")]
    for row in rows:
        restored = np.asarray(Image.open(tmp_path / "wrong" / row["file"]))
        np.testing.assert_array_equal(restored, originals[int(row["image"])])
