"""StoreSetDescription: JSON round trip, derived numbers, and every contradiction refused."""

import msgspec
import pytest

from psl_flower.errors import ConfigError, StoreError
from psl_flower.patches import PatchGrid
from psl_flower.patches.description import StoreSetDescription

MANIFEST = StoreSetDescription(
    dataset="uoft-cs/cifar10",
    fingerprint="ab12",
    source="cd34",
    image_size=(32, 32),
    channels=3,
    patch_size=(16, 16),
    stride=(16, 16),
    fit="exact",
    assignment=(0, 1, 1, 0),
    class_names=("cat", "dog"),
    splits={"train": ((0, 8),), "test": ((8, 10),)},
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 1 / 3),
)


def test_round_trip_is_exact_and_leaves_no_other_file(tmp_path):
    MANIFEST.save(tmp_path / "manifest.json")
    MANIFEST.save(tmp_path / "manifest.json")
    assert StoreSetDescription.load(tmp_path / "manifest.json") == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_derived_numbers():
    assert MANIFEST.version == 2
    assert MANIFEST.grid() == PatchGrid(image_size=(32, 32), patch_size=(16, 16), stride=(16, 16))
    assert MANIFEST.positions_of(0) == (0, 3)
    assert MANIFEST.positions_of(1) == (1, 2)
    assert (MANIFEST.num_uppers, MANIFEST.num_classes, MANIFEST.num_samples) == (2, 2, 10)


def test_a_store_with_another_margin_is_told_from_its_patches():
    kept = msgspec.structs.replace(MANIFEST, margin=2)
    assert (MANIFEST.stored_shape, kept.stored_shape) == ((3, 16, 16), (3, 20, 20))
    assert kept.mismatch(kept.meta_of(1), 1) == ""
    assert MANIFEST.mismatch(kept.meta_of(1), 1) == (
        "holds patches of 3x20x20 (channels x height x width), expected 3x16x16 for Upper 1: patches of 16x16 with a "
        "margin of 0 pixels"
    )


def test_a_description_from_before_there_were_margins_has_none(tmp_path):
    MANIFEST.save(tmp_path / "manifest.json")
    text = (tmp_path / "manifest.json").read_text("utf-8")
    assert '"margin": 0,' in text
    (tmp_path / "manifest.json").write_text(text.replace('"margin": 0,', ""), "utf-8")
    assert StoreSetDescription.load(tmp_path / "manifest.json") == MANIFEST


def test_samples_of_a_split_that_grew():
    splits = {"train": ((0, 3), (5, 7)), "test": ((3, 5), (7, 8))}
    grown = msgspec.structs.replace(MANIFEST, splits=splits)
    assert grown.samples_of("train").tolist() == [0, 1, 2, 5, 6]
    assert grown.samples_of("test").tolist() == [3, 4, 7]
    assert grown.num_samples == 8
    names = [
        ("train", 0),
        ("train", 1),
        ("train", 2),
        ("test", 0),
        ("test", 1),
        ("train", 3),
        ("train", 4),
        ("test", 2),
    ]
    assert [grown.split_of(k) for k in range(8)] == names
    assert [grown.sample_of(*name) for name in names] == list(range(8))


@pytest.mark.parametrize("name", [("train", 8), ("test", -1), ("validation", 0)])
def test_there_is_no_such_image(name):
    with pytest.raises(
        ConfigError, match=f"there is no image {name[0]}:{name[1]}; there are train:0 to train:7, test:0 to test:1"
    ):
        MANIFEST.sample_of(*name)
    with pytest.raises(ConfigError, match="there is no image 10; the dataset has images 0 to 9"):
        MANIFEST.split_of(10)


@pytest.mark.parametrize("upper", [-1, 2])
def test_there_is_no_such_upper(upper):
    with pytest.raises(ConfigError, match="0 to 1"):
        MANIFEST.positions_of(upper)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 1}, "version 2, found 1"),
        ({"image_size": (33, 32)}, "do not tile"),
        ({"assignment": (0, 1, 1)}, "4 positions, 3 are assigned"),
        ({"assignment": ()}, "4 positions, 0 are assigned"),
        ({"assignment": (0, 2, 2, 0)}, "without a position"),
        ({"assignment": (0, 10**15, 1, 0)}, "without a position"),
        ({"assignment": (0, -1, 1, 0)}, "without a position"),
        ({"channels": 1}, "1 channels, 3 means"),
        ({"std": (0.5,)}, "1 standard deviations"),
        ({"channels": 0, "mean": (), "std": ()}, "0 channels"),
        ({"class_names": ("cat",)}, "class names"),
        ({"class_names": ("cat", "cat")}, "class names"),
        ({"splits": {"train": ((0, 8),)}}, "splits train and test"),
        ({"splits": {"train": ((0, 10),), "test": ()}}, "samples of both splits"),
        ({"splits": {"train": ((1, 8),), "test": ((8, 10),)}}, "from 0 on"),
        ({"splits": {"train": ((0, 8),), "test": ((9, 10),)}}, "each once"),
        ({"splits": {"train": ((0, 8), (10, 12)), "test": ((8, 11),)}}, "each once"),
        ({"splits": {"train": ((0, 8),), "test": ((8, 7),)}}, "each once"),
        ({"splits": {"train": ((0, -8),), "test": ((-8, 7),)}}, "each once"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, match):
    path = tmp_path / "manifest.json"
    msgspec.structs.replace(MANIFEST, **changes).save(path)
    with pytest.raises(StoreError, match=match) as caught:
        StoreSetDescription.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"}", b""),
        (b'"channels": 3', b'"channels": "3"'),
        (b'"channels": 3', b'"channels": 3, "more": 1'),
        (b'"channels": 3,', b""),
        (b'"exact"', b'"stretch"'),
        (b"cifar10", b"\xff"),
    ],
    ids=["cut", "mistyped", "unknown", "missing", "not a choice", "not text"],
)
def test_damage_is_refused(tmp_path, old, new):
    path = tmp_path / "manifest.json"
    MANIFEST.save(path)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(StoreError, match="damaged"):
        StoreSetDescription.load(path)


def test_missing_and_unwritable(tmp_path):
    with pytest.raises(StoreError, match="manifest.json: cannot be read"):
        StoreSetDescription.load(tmp_path / "manifest.json")
    with pytest.raises(StoreError, match="manifest.json: cannot be written"):
        MANIFEST.save(tmp_path / "absent" / "manifest.json")
