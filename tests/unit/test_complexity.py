"""The grid chosen from the images: the measure by hand, the ladder, real images, and that a choice is made once."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from psl_flower.config import RunConfig
from psl_flower.data.sources import open_dataset
from psl_flower.errors import ConfigError, DataError, GridError
from psl_flower.patches import cutting
from psl_flower.patches.complexity import STEP, choose_grid, count_turns
from psl_flower.seeds import derive
from psl_flower.stores import store_set
from psl_flower.stores.grid_choice import REASON_FILE, choose_for
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.prepare import prepare_stores
from tests.paths import DATA
from tests.unit.tiny_pictures import request_for
from tests.unit.tiny_sealed import make_sealed


def grey(pixels):
    return np.asarray(pixels, np.uint8)[:, :, np.newaxis]


def bars(count, size=64):
    """Return upright dark bars on a light ground, with ground on either side."""
    line = np.full(size, 200)
    for i in range(count):
        line[(2 * i + 1) * size // (2 * count + 1) : (2 * i + 2) * size // (2 * count + 1)] = 40
    return np.tile(line, (size, 1))


def one_figure(size=64):
    image = np.full((size, size), 200)
    image[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 40
    return image


def noisy(amplitude, size=64):
    return 100 + np.random.default_rng(derive(0, "noise")).integers(-amplitude, amplitude + 1, (size, size))


# Image -> turns along a line, mean of rows and columns.
BY_HAND = {
    "one colour": (np.full((16, 16), 90), 0.0),
    "a shade": (np.tile(np.arange(64) * 4, (64, 1)), 0.0),
    "a step": (np.tile(np.repeat([20, 220], 32), (64, 1)), 0.0),
    "one bar": (bars(1), 0.5),
    "three bars": (bars(3), 2.5),
    # Half of the lines meet the figure: down, and up again, which is a turn.
    "one figure": (one_figure(), 0.5),
    "faint noise": (noisy(STEP // 2), 0.0),
}


@pytest.mark.parametrize(("image", "turns"), BY_HAND.values(), ids=BY_HAND.keys())
def test_turns_by_hand(image, turns):
    assert BY_HAND
    assert count_turns(grey(image)) == turns
    assert count_turns(grey(image.T)) == turns
    assert count_turns(grey(255 - image)) == turns
    assert count_turns(np.repeat(grey(image), 3, axis=2)) == turns
    larger = np.repeat(np.repeat(image, 5, axis=0), 5, axis=1)
    assert count_turns(grey(larger)) == pytest.approx(turns, abs=0.05)


def test_loud_noise_turns_all_the_time():
    assert count_turns(grey(noisy(100))) > 20


# Bars -> rows and columns of patches of a 64x64 image, pixels of a patch and of the stride.
LADDER = [(1, 2, 32, 32), (2, 2, 32, 32), (3, 3, 32, 16), (4, 3, 32, 16), (5, 4, 16, 16), (8, 4, 16, 16), (9, 7, 16, 8)]


@pytest.mark.parametrize(("count", "rows", "patch", "stride"), LADDER)
def test_the_ladder(count, rows, patch, stride):
    """Upright bars turn 2 * count - 1 times along rows and never along columns."""
    assert LADDER
    choice = choose_grid([grey(bars(count))], (64, 64))
    assert choice.turns == (2 * count - 1) / 2
    assert (choice.grid.rows, choice.grid.cols) == (rows, rows)
    assert (choice.grid.patch_size, choice.grid.stride) == ((patch, patch), (stride, stride))
    assert f"brightness turns {choice.turns:.1f} times along a line of an image (mean of 1 image;" in choice.reason
    assert f"auto chose {rows}x{rows} patches of {patch}x{patch}" in choice.reason
    assert ("overlapping" in choice.reason) == (stride < patch)


BUSY = grey(noisy(100))
# Size, fit, Uppers -> rows and patch of a busy image's grid, and what the reason says of it.
FITTING = {
    "as the turns ask for": ((64, 64), "exact", 0, 7, (16, 16), ""),
    "patches would be below 8 pixels": ((16, 16), "exact", 0, 3, (8, 8), "the nearest coarser pattern"),
    "halves are all that tiles": ((34, 34), "exact", 0, 2, (17, 17), "the nearest coarser pattern"),
    "padded": ((34, 34), "pad", 0, 6, (9, 9), ""),
    "large images have another stem": ((96, 96), "exact", 0, 3, (48, 48), "the nearest coarser pattern"),
    "not square": ((64, 128), "exact", 0, 3, (32, 64), "the nearest coarser pattern"),
    "nothing has 8 pixels": ((8, 8), "exact", 0, 2, (4, 4), "the nearest coarser pattern"),
}


@pytest.mark.parametrize(("size", "fit", "uppers", "rows", "patch", "said"), FITTING.values(), ids=FITTING.keys())
def test_what_does_not_fit_is_left_for_the_nearest(size, fit, uppers, rows, patch, said):
    choice = choose_grid([BUSY], size, fit, uppers)
    assert (choice.grid.rows, choice.grid.patch_size) == (rows, patch)
    assert said in choice.reason
    assert ("nearest" in choice.reason) == bool(said)


def test_uppers_need_patches():
    plain = grey(np.full((64, 64), 9))
    assert choose_grid([plain], (64, 64), num_uppers=4).grid.num_patches == 4
    nine = choose_grid([plain], (64, 64), num_uppers=5)
    assert nine.grid.num_patches == 9
    assert "the nearest finer pattern that fits image and Uppers" in nine.reason


def test_what_cannot_be_chosen_is_said():
    with pytest.raises(GridError, match=r'do not tile an image of 33x34.*fit="pad"'):
        choose_grid([BUSY], (33, 34))
    with pytest.raises(DataError, match="no images to choose a patch grid from"):
        choose_grid([], (32, 32))


def test_digits_are_plain():
    choice = choose_for(open_dataset("digits"), (0, 0), "exact", 0)
    assert 1.2 < choice.turns < 1.6
    assert (choice.grid.num_patches, choice.grid.patch_size, choice.num_images) == (4, (8, 8), 256)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_small_photographs_overlap(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"no {DATA / name}; set PSL_DATA")
    choice = choose_for(open_dataset(str(DATA / name)), (0, 0), "exact", 0)
    assert 3.2 < choice.turns < 3.8
    assert (choice.grid.num_patches, choice.grid.patch_size, choice.grid.stride) == (9, (16, 16), (8, 8))


def test_large_photographs_are_busy():
    temple, flower = (load_sample_image(f"{name}.jpg")[:416] for name in ("china", "flower"))
    assert count_turns(temple) > 4 * count_turns(flower) > 32
    choice = choose_grid([temple, flower], (416, 640))
    assert (choice.grid.rows, choice.grid.patch_size, choice.grid.stride) == (7, (104, 160), (52, 80))


def plain_and_busy(folder):
    """Fill a folder with 32x32 images of two classes, the first all plain."""
    for part in ("train", "test"):
        for name, image in (("plain", one_figure(32)), ("busy", noisy(100, 32))):
            (folder / part / name).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(np.asarray(image, np.uint8)).save(folder / part / name / f"{i}.png")
    return folder


def test_images_of_all_classes_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("psl_flower.stores.grid_choice.MAX_IMAGES", 4)
    choice = choose_for(open_dataset(str(plain_and_busy(tmp_path))), (0, 0), "exact", 0)
    assert choice.num_images == 4
    assert choice.turns == pytest.approx((count_turns(grey(one_figure(32))) + count_turns(grey(noisy(100, 32)))) / 2)
    resized = choose_for(open_dataset(str(tmp_path)), (16, 16), "exact", 0)
    assert resized.grid.image_size == (16, 16)
    assert resized.turns < choice.turns


def both(tmp_path, request):
    return make_sealed(tmp_path / "sealed", request), ensure_stores(tmp_path / "plain", request)


def test_a_choice_is_made_once_and_remembered(tmp_path, monkeypatch):
    pictures = plain_and_busy(tmp_path / "pictures")
    request = request_for(pictures, patch_size=(0, 0), stride=(0, 0), pattern="auto")
    first = both(tmp_path, request)
    for stores in first:
        assert stores.created
        assert stores.description.num_uppers == stores.description.grid().num_patches == 49
        assert stores.grid_reason.startswith("grid: brightness turns ")
    assert first[0].grid_reason == first[1].grid_reason
    for size, stride in (((8, 8), (4, 4)), ((0, 0), (0, 0))):
        other = ensure_stores(tmp_path / "plain", request_for(pictures, patch_size=size, stride=stride))
        assert other.folder != first[1].folder
        assert other.grid_reason == ""
    with monkeypatch.context() as patch:
        patch.setattr(store_set, "open_dataset", None)
        again = both(tmp_path, request)
    assert [(s.folder, s.description.grid(), s.grid_reason) for s in again] == [
        (s.folder, s.description.grid(), s.grid_reason) for s in first
    ]
    assert not any(stores.created for stores in again)
    for stores in first:
        (stores.folder / REASON_FILE).unlink()
    assert [stores.grid_reason for stores in both(tmp_path, request)] == [stores.grid_reason for stores in first]


def test_an_interrupted_ingest_goes_on_with_the_same_choice(tmp_path, monkeypatch):
    pictures = plain_and_busy(tmp_path / "pictures")
    request = request_for(pictures, patch_size=(0, 0), stride=(0, 0), pattern="auto", num_uppers=2)
    monkeypatch.setattr(cutting, "_CHUNK_IMAGES", 4)

    def interrupt(stage, done, total):
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sealed(tmp_path, request, interrupt)
    made = make_sealed(tmp_path, request)
    assert made.created
    assert (made.description.grid().num_patches, made.description.num_uppers) == (49, 2)
    assert made.description.num_samples == 24


def test_stores_that_an_owner_has_cut_are_not_cut_again(tmp_path):
    config = RunConfig.of(workspace=str(tmp_path), max_train=20, max_test=4)
    made = prepare_stores(config)
    with pytest.raises(ConfigError, match="grid: auto is given, but .* holds stores that are cut already"):
        prepare_stores(config.replace(dataset=str(made.folder), grid="auto", max_train=0, max_test=0))
