"""The study of recipes: its sets, that trainings are kept, and what it says."""

import numpy as np
import pytest
from PIL import Image

from simulations import recipe, reports
from simulations.recipe import Options, Report
from simulations.small_sets import SETS


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of 10 classes with 4 small pictures each."""
    random = np.random.default_rng(0)
    for split, k, i in np.ndindex(2, 10, 4):
        place = tmp_path / "pictures" / ("train", "test")[split] / f"class-{k}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(place / f"{i}.png")
    return tmp_path / "pictures"


def test_trainings_are_kept_and_told_of(pictures, tmp_path, capsys):
    out = tmp_path / "recipe.json"
    arguments = ["--dataset", str(pictures), "--sets", "three", "--steps", "1", "--lrs", "0.05", "--side", "8"]
    assert recipe.main([*arguments, "--out", str(out)]) == 0
    before, after = reports.load(out, Report).measurements
    assert (before.recipe, before.batch_size, before.lr, before.steps) == ("before", 64, 0.05, 3)
    assert (after.recipe, after.batch_size, after.lr, after.steps) == ("batch by images", 16, 0.0125, 1)
    assert before.images == after.images == 9
    assert before.classes == 3
    ((_, rows),) = reports.load(out, Report).tables
    assert [row[:5] for row in rows] == [
        ("3 kinds of photograph, 60 of each, as before", "9", "64", "0.05", "3"),
        ("3 kinds of photograph, 60 of each", "9", "16", "0.0125", "1"),
    ]
    capsys.readouterr()
    assert recipe.main([*arguments, "--out", str(out), "--json"]) == 0
    assert reports.load(out, Report).measurements == (before, after), "nothing is trained again"
    assert "python -m simulations.recipe" in reports.load(out, Report).command


def test_class_weights_are_a_recipe_of_their_own(pictures, tmp_path):
    out = tmp_path / "recipe.json"
    arguments = ["--dataset", str(pictures), "--sets", "rare", "--steps", "1", "--lrs", "0.05", "--side", "8"]
    assert recipe.main([*arguments, "--class-weights", "none,balanced", "--out", str(out)]) == 0
    report = reports.load(out, Report)
    names = [trial.recipe for trial in report.measurements]
    assert names == ["before", "batch by images", "batch by images, class weights"]
    assert report.tables[0][1][2][0] == "3 kinds of photograph: 200, 60, 20, with class weights"


def test_a_folder_is_a_set(pictures, tmp_path, capsys):
    out = tmp_path / "recipe.json"
    folder = pictures / "train"
    assert recipe.main(["--sets", str(folder), "--steps", "1", "--lrs", "0.05", "--side", "16", "--out", str(out)]) == 0
    before, _ = reports.load(out, Report).measurements
    # A fifth of a folder is held back to test on, a quarter of the rest to validate on.
    assert (before.images, before.classes, before.side) == (24, 10, 16)
    assert reports.load(out, Report).tables[0][1][1][0] == "the folder train"
    assert recipe.main(["--sets", str(tmp_path / "nosuch")]) == 2
    assert "or folders of images, got" in capsys.readouterr().err


def test_sets_are_what_they_say(pictures):
    options = Options(dataset=str(pictures), side=8)
    found = {
        name: [(image.size, image.mode, k) for image, k in make(options.dataset, options.side)]
        for name, (_, make) in SETS.items()
        if make
    }
    assert {k for _, _, k in found["three"]} == {0, 3, 8}
    assert len(found["ten"]) == 40
    assert {size for size, _, _ in found["large"]} == {(224, 224)}
    assert len(found["glyphs"]) == 400
    assert {mode for _, mode, _ in found["glyphs"]} == {"L"}
    assert {k for _, _, k in found["glyphs"]} == set(range(40))
