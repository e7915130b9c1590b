"""open_dataset: every kind of source, every kind of image, every bad input."""

import io
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.images import decode_image, resize_image
from psl_flower.data.sources import SourceOptions, local_fingerprint, open_dataset
from psl_flower.errors import ConfigError, CorruptImage, DataError, DatasetNotFound
from tests.paths import DATA, ROOT


def encode(pixels, mode=None, kind="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def colour(value, size=(6, 8)):
    return np.full((*size, 3), value, np.uint8)


NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def image_folder(root, spec):
    """Write {folder of a class: number of images}; image i of folder f has the grey level 10 * f + i."""
    for f, (rel, count) in enumerate(spec.items()):
        (root / rel).mkdir(parents=True)
        for i in range(count):
            (root / rel / f"{i}.png").write_bytes(encode(colour(10 * f + i)))
    return str(root)


@pytest.fixture(scope="session")
def datasets():
    import datasets

    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def parquet(tmp_path, datasets, monkeypatch):
    """Return a writer of parquet folders: parquet({"train": columns}, **feature types) -> name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(splits, **features):
        folder = tmp_path / "tables"
        folder.mkdir()
        for split, columns in splits.items():
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(**features))
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return str(folder)

    return write


def cells(*values):
    return [{"bytes": encode(colour(v)), "path": f"{v}.png"} for v in values]


def levels(source, split):
    return [(int(image[0, 0, 0]), label) for image, label in source.samples(split)]


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
    with pytest.raises(DataError, match="2 images are too few"):
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


# --- folders of images


def test_train_and_test_folders(tmp_path):
    name = image_folder(tmp_path / "set", {"train/dog": 2, "train/cat": 1, "test/cat": 1, "test/dog": 1, "notes/x": 1})
    source = open_dataset(name)
    assert source.class_names == ("cat", "dog")
    assert levels(source, "train") == [(10, 0), (0, 1), (1, 1)]
    assert levels(source, "test") == [(20, 0), (30, 1)]


def test_val_folder_serves_as_test(tmp_path):
    source = open_dataset(image_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}))
    assert (source.num_samples("train"), source.num_samples("test")) == (4, 2)


def test_class_folders_called_like_splits_are_classes(tmp_path):
    name = image_folder(tmp_path / "set", {"train": 5, "car": 5, "test tube": 5})
    assert open_dataset(name).class_names == ("car", "test tube", "train")


def test_other_files_and_deeper_folders(tmp_path):
    name = image_folder(tmp_path / "set", {"cat/indoors": 3, "cat/outdoors": 3, "dog": 3, ".hidden": 2})
    for stray in ("Thumbs.db", "cat/readme.txt", "top.png"):
        (tmp_path / "set" / stray).write_bytes(b"nothing")
    source = open_dataset(name)
    assert source.class_names == ("cat", "dog")
    assert source.num_samples("train") + source.num_samples("test") == 9


def test_local_folder_does_not_need_the_datasets_library(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    program = (
        "import sys; from psl_flower.data.sources import open_dataset;"
        f"s = open_dataset({name!r}); print(s.fingerprint, 'datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [open_dataset(name).fingerprint, "False"]


def test_no_columns_to_choose_from(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    with pytest.raises(DataError, match="no columns to choose from"):
        open_dataset(name, label_column="label")


# --- parquet


def test_columns_are_found_by_type(parquet, datasets):
    columns = {
        "id": [7, 8, 9], "coarse": [0, 0, 0], "fine_label": [1, 0, 1], "picture": cells(1, 2, 3),
    }  # fmt: skip
    name = parquet(
        {"train": columns, "test": columns},
        id=datasets.Value("int64"),
        coarse=datasets.ClassLabel(names=["x", "y"]),
        fine_label=datasets.ClassLabel(names=["a", "b"]),
        picture=datasets.Image(),
    )
    source = open_dataset(name)
    assert source.class_names == ("a", "b")
    assert levels(source, "train") == [(1, 1), (2, 0), (3, 1)]
    chosen = open_dataset(name, image_column="picture", label_column="id")
    assert chosen.class_names == ("7", "8", "9")
    assert levels(chosen, "test") == [(1, 0), (2, 1), (3, 2)]
    for options, match in (
        ({"image_column": "id"}, "no image column 'id'; image columns: picture"),
        ({"label_column": "picture"}, "no label column 'picture'.*coarse, fine_label, id"),
    ):
        with pytest.raises(DataError, match=match):
            open_dataset(name, **options)


def test_text_labels_over_both_splits(parquet, datasets):
    name = parquet(
        {
            "train": {"img": cells(1, 2), "kind": ["pear", "fig"]},
            "validation": {"img": cells(3, 4), "kind": ["apple", "fig"]},
        },
        img=datasets.Image(),
        kind=datasets.Value("string"),
    )
    source = open_dataset(name)
    assert source.class_names == ("apple", "fig", "pear")
    assert levels(source, "train") == [(1, 2), (2, 1)]
    assert levels(source, "test") == [(3, 0), (4, 1)]


@pytest.mark.parametrize(
    ("columns", "kinds", "match"),
    [
        ({"label": [0, 1]}, {"label": "class"}, "no column holds images; the columns are label"),
        ({"image": cells(1, 2)}, {"image": "image"}, "no column holds labels"),
        (
            {"image": cells(1, 2), "a": [0, 1], "b": [0, 1]},
            {"image": "image", "a": "int64", "b": "int64"},
            r"several columns can be the label \(a, b\)",
        ),
        ({"image": cells(1, 2), "label": [1, 1]}, {"image": "image", "label": "class"}, "all of one class"),
        (
            {"image": cells(1, 2), "label": [1, -1]},
            {"image": "image", "label": "class"},
            "1 of 2 .* no label",
        ),
        (
            {"image": cells(1, 2), "label": [1, None]},
            {"image": "image", "label": "int64"},
            "1 of 2 .* no label",
        ),
        ({"image": [], "label": []}, {"image": "image", "label": "class"}, "corresponds to no data|empty"),
    ],
    ids=["no images", "no labels", "two plain", "one class", "-1", "null", "empty"],
)
def test_unusable_tables(parquet, datasets, columns, kinds, match):
    types = {"class": datasets.ClassLabel(names=["a", "b"]), "image": datasets.Image()}
    features = {name: types.get(kind) or datasets.Value(kind) for name, kind in kinds.items()}
    name = parquet({"train": columns}, **features)
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(name)
    assert name in str(caught.value)


def test_unlabelled_test_split_is_named(parquet, datasets):
    name = parquet(
        {"train": {"i": cells(1, 2), "label": [0, 1]}, "test": {"i": cells(3, 4), "label": [-1, -1]}},
        i=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    with pytest.raises(DataError, match="2 of 2 images of split 'test'"):
        open_dataset(name)


def test_broken_cells_name_split_row_and_file(parquet, datasets):
    broken = [*cells(1, 2), {"bytes": encode(colour(3))[:-30], "path": "three.png"}, None]
    name = parquet(
        {"train": {"i": cells(1, 2), "label": [0, 1]}, "test": {"i": broken, "label": [0, 1, 0, 1]}},
        i=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    source = open_dataset(name)
    with pytest.raises(CorruptImage, match=r"image 2 of split 'test' \(three\.png\)"):
        list(source.samples("test"))
    with pytest.raises(CorruptImage, match="image 3 of split 'test': there is no image"):
        list(source.samples("test", start=3))
    assert len(list(source.samples("train"))) == 2


def test_no_train_split(parquet, datasets):
    columns = {"i": cells(1, 2), "label": [0, 1]}
    name = parquet(
        {"test": columns, "validation": columns},
        i=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    with pytest.raises(DataError, match='no split is called "train"; the dataset has test, validation'):
        open_dataset(name)


@pytest.mark.parametrize("file", ["", "notes.xyz", "train-0.parquet"])
def test_folder_without_a_dataset(tmp_path, file):
    if file:
        (tmp_path / file).write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"neither images .* nor files"):
        open_dataset(str(tmp_path))


# --- names


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "../nowhere", "a/b/c", "", "~/no/such"])
def test_no_such_folder(name):
    with pytest.raises(DatasetNotFound, match=r"no such folder|no dataset is named"):
        open_dataset(name)


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


# --- images


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(np.full((2, 3), 9, np.uint8)), [9]),
        (encode(np.full((2, 3), 255, np.uint8), "1"), [255]),
        (encode(np.full((2, 3), 9, np.uint8), "LA"), [9]),
        (encode(np.full((2, 3), 0x1234, np.uint16)), [0x12]),
        (encode(np.full((2, 3), 0x1234, np.uint16), kind="TIFF"), [0x12]),
        (encode(np.full((2, 3, 3), (1, 2, 3), np.uint8)), [1, 2, 3]),
        (encode(np.full((2, 3, 4), (1, 2, 3, 0), np.uint8)), [1, 2, 3]),
        (encode(np.full((2, 3, 3), (1, 2, 3), np.uint8), "P"), None),
        (encode(np.full((2, 3, 3), (255, 0, 255), np.uint8), "CMYK", "TIFF"), [255, 0, 255]),
    ],
    ids=["L", "1", "LA", "16 bit", "16 bit tiff", "RGB", "RGBA", "P", "CMYK"],
)
def test_modes(encoded, expected):
    image = decode_image(encoded, "here")
    assert image.dtype == np.uint8 and image.shape == (2, 3, len(expected or [1, 2, 3]))
    if expected:
        np.testing.assert_array_equal(image, np.full_like(image, expected))


def test_exif_orientation_is_applied():
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encode(pixels, exif=exif), "here")
    np.testing.assert_array_equal(image[:, :, 0], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "encoded",
    [b"", b"nonsense", encode(NOISE)[:-40], encode(colour(1), kind="JPEG")[:200], encode(colour(1))[:20]],
    ids=["empty", "no image", "cut png", "cut jpeg", "header only"],
)
def test_broken_images(encoded):
    with pytest.raises(CorruptImage, match="image 3 of split 'test': cannot be decoded"):
        decode_image(encoded, "image 3 of split 'test'")


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating point"):
        decode_image(encode(np.zeros((2, 2), np.float32), kind="TIFF"), "here")


def test_broken_and_vanished_files_are_named(tmp_path):
    name = image_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    source = open_dataset(name)
    broken = tmp_path / "set" / "train" / "dog" / "0.png"
    broken.write_bytes(b"nonsense")
    with pytest.raises(CorruptImage, match=rf"image 2 of split 'train' \({broken}\)"):
        list(source.samples("train"))
    broken.unlink()
    with pytest.raises(CorruptImage, match=rf"{broken}\): cannot be read"):
        list(source.samples("train"))


def test_channels_must_agree_across_splits(tmp_path):
    name = image_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    (tmp_path / "set" / "test" / "dog" / "0.png").write_bytes(encode(np.zeros((6, 8), np.uint8)))
    source = open_dataset(name)
    assert len(list(source.samples("train"))) == 4
    with pytest.raises(DataError, match="image 1 of split 'test' has 1 channel, image 0 of split 'train' has 3"):
        list(source.samples("test"))


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_covers_and_crops_the_centre(channels):
    image = np.zeros((8, 16, channels), np.uint8)
    image[:, 4:12] = 200
    resized = resize_image(image, (4, 4))
    assert resized.shape == (4, 4, channels)
    np.testing.assert_array_equal(resized[:, 1:3], 200)
    assert resize_image(image, (8, 16)) is image
    assert resize_image(image, (3, 31)).shape == (3, 31, channels)


# --- real data


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_real_data(dataset, classes):
    folder = DATA / dataset
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set PSL_DATA")
    source = open_dataset(str(folder), max_train=40, max_test=10)
    assert len(source.class_names) == classes
    assert (source.num_samples("train"), source.num_samples("test")) == (40, 10)
    samples = list(source.samples("train"))
    assert {image.shape for image, _ in samples} == {(32, 32, 3)}
    assert len({label for _, label in samples}) > 5
