"""open_dataset: the digits, names, the choice and division of images, fingerprints."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import local_fingerprint, open_dataset
from psl_flower.errors import ConfigError, DataError, DatasetNotFound
from tests.unit.tiny_pictures import colour, encode, image_folder, levels

# --- digits


def test_digits():
    source = open_dataset("digits")
    assert source.class_names == tuple("0123456789")
    assert (source.num_samples("train"), source.num_samples("test")) == (1437, 360)
    image, label = next(source.samples("train"))
    assert (image.shape, image.dtype, type(label)) == ((16, 16, 1), np.uint8, int)
    everything = [pair for split in ("train", "test") for pair in source.samples(split)]
    assert max(int(image.max()) for image, _ in everything) == 255
    counts = np.bincount([label for _, label in source.samples("test")])
    assert counts.min() >= 34 and counts.max() <= 37, "a fifth of each class"


def test_digits_are_scikit_learns_first_image():
    from sklearn.datasets import load_digits

    source = open_dataset("digits", test_fraction=0.001)
    image, label = next(source.samples("train"))
    small = load_digits().images[0]
    assert label == 0
    # Halving a picture that was doubled with interpolation nearly gives it back.
    halved = np.asarray(Image.fromarray(image[:, :, 0]).resize((8, 8), Image.Resampling.BOX), float)
    assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.95


def test_start_skips_samples():
    source = open_dataset("digits", max_train=20)
    every = list(source.samples("train"))
    rest = list(source.samples("train", start=17))
    assert len(every) == 20 and len(rest) == 3
    for (a, x), (b, y) in zip(every[17:], rest, strict=True):
        np.testing.assert_array_equal(a, b)
        assert x == y
    assert list(source.samples("train", start=20)) == []


def test_unknown_split():
    source = open_dataset("digits")
    with pytest.raises(DataError, match="no split 'valid'"):
        source.num_samples("valid")


# --- selection


def test_selection_is_mixed_deterministic_and_moves_with_the_seed():
    def labels(**options):
        return [label for _, label in open_dataset("digits", **options).samples("train")]

    some = labels(max_train=60)
    assert len(some) == 60 and len(set(some)) == 10
    assert labels(max_train=60) == some
    assert labels(max_train=30) == some[:30]
    assert labels(max_train=60, seed=1) != some
    assert open_dataset("digits", max_test=7).num_samples("test") == 7
    assert open_dataset("digits", max_test=10**9).num_samples("test") == 360


def test_division_separates_train_from_test(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 10, "dog": 10})
    source = open_dataset(name, test_fraction=0.3)
    train, test = levels(source, "train"), levels(source, "test")
    assert (len(train), len(test)) == (14, 6)
    assert sorted(train + test) == sorted([(i, 0) for i in range(10)] + [(10 + i, 1) for i in range(10)])
    assert [label for _, label in test].count(0) == 3, "stratified"
    assert levels(open_dataset(name, test_fraction=0.3, seed=5), "test") != test


def test_division_is_random_where_a_class_has_one_image(tmp_path):
    source = open_dataset(image_folder(tmp_path / "set", {"cat": 9, "dog": 1}))
    assert (source.num_samples("train"), source.num_samples("test")) == (8, 2)


def test_too_few_images_to_divide(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match="too few images \(2\)"):
        open_dataset(name, test_fraction=0.9)


@pytest.mark.parametrize(
    "options",
    [
        {"test_fraction": 0.0},
        {"test_fraction": 1.0},
        {"test_fraction": float("nan")},
        {"seed": -1},
        {"seed": 2**32},
        {"max_train": -1},
        {"max_test": -1},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match="expected"):
        open_dataset("digits", **options)


# --- names


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "../nowhere", "a/b/c", "", "~/no/such"])
def test_no_such_folder(name):
    with pytest.raises(DatasetNotFound, match=r"no such folder|no dataset is named") as caught:
        open_dataset(name)
    # The absolute path only where it is not what was given.
    assert name[:1] != "/" or str(caught.value).count(name) == 1


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.png").write_bytes(encode(colour(1)))
    with pytest.raises(DatasetNotFound, match="is a file"):
        open_dataset(str(tmp_path / "x.png"))


def test_unreachable_hub_is_said_within_seconds(datasets, monkeypatch):
    import huggingface_hub

    # A local port that nothing listens on.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    began = time.monotonic()
    with pytest.raises(DatasetNotFound, match=r"no such folder .*hub \(http://127\.0\.0\.1:9\) could not be reached"):
        open_dataset("psl-flower/no-such-dataset")
    assert time.monotonic() - began < 8
    assert not datasets.config.HF_HUB_OFFLINE, "the library is left as it was"


# --- fingerprints


def test_fingerprint_follows_files_and_options(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 3, "dog": 3})

    def fingerprint(**options):
        return local_fingerprint(name, SourceOptions(**options))

    first = fingerprint()
    assert first == fingerprint() == open_dataset(name).fingerprint
    others = [
        fingerprint(seed=1), fingerprint(max_train=1), fingerprint(max_test=1),
        fingerprint(test_fraction=0.5),
        fingerprint(image_column="i"), fingerprint(label_column="l"),
    ]  # fmt: skip
    file = tmp_path / "set" / "cat" / "0.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    others.append(fingerprint())
    file.write_bytes(encode(colour(200, (9, 9))))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    others.append(fingerprint())
    file.rename(file.with_name("9.png"))
    others.append(fingerprint())
    assert len({first, *others}) == len(others) + 1


def test_fingerprints_without_opening():
    assert local_fingerprint("digits", SourceOptions()) == open_dataset("digits").fingerprint
    assert local_fingerprint("uoft-cs/cifar10", SourceOptions()) is None
