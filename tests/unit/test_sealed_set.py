"""ensure_sealed and prepare_stores: the patches of plain stores, each for its node alone; reuse, bad datasets, labels."""

import shutil

import numpy as np
import pytest
from PIL import Image

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, DataError, LabelError, PslError
from psl_flower.sealed import ingest, keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.stores import store_set
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.files import Disk
from tests.unit.tiny_pictures import files_of, images_of, listing, request_for
from tests.unit.tiny_sealed import content, make_sealed, same_sets

CUTS = {
    "whole": {},
    "overlap": {"stride": (2, 2), "num_uppers": 2},
    "one Upper": {"num_uppers": 1},
    "round-robin": {"num_uppers": 2, "assignment": "round-robin"},
    "pad": {"patch_size": (3, 5), "stride": (3, 5), "fit": "pad"},
    "margin": {"margin": 3},
    "chosen, with margin": {"pattern": "auto", "patch_size": (0, 0), "stride": (0, 0), "margin": 2},
    "image size": {"image_size": (4, 8)},
    "drawn": {"max_train": 4, "max_test": 2, "seed": 6},
}


@pytest.mark.parametrize("changes", CUTS.values(), ids=CUTS)
def test_the_patches_are_those_of_plain_stores(tmp_path, pictures, changes):
    assert CUTS
    wanted = request_for(pictures, **changes)
    sealed, plain = make_sealed(tmp_path, wanted), ensure_stores(tmp_path / "plain", wanted)
    assert sealed.created and sealed.sealed and not plain.sealed
    assert sealed.folder.name == plain.folder.name
    same_sets(sealed, plain)


def test_the_digits_of_a_run(tmp_path):
    config = RunConfig.of(workspace=str(tmp_path), max_train=70, max_test=10)
    sealed, plain = prepare_stores(config), prepare_stores(config.replace(stores="plain"))
    assert (sealed.folder.parent, sealed.keys) == (tmp_path / "stores", tmp_path / "keys")
    same_sets(sealed, plain)
    elsewhere = prepare_stores(config.replace(workspace=str(tmp_path / "other"), keys=str(tmp_path / "keys")))
    assert (elsewhere.keys, elsewhere.owner) == (sealed.keys, sealed.owner)


def test_a_second_call_decodes_and_draws_nothing(tmp_path, pictures, monkeypatch):
    first = make_sealed(tmp_path, request_for(pictures))
    before = content(tmp_path)

    def forbidden(*_, **__):
        raise AssertionError("opened the dataset again")

    monkeypatch.setattr(store_set, "open_dataset", forbidden)
    again = make_sealed(tmp_path, request_for(pictures))
    assert not again.created
    assert (again.folder, again.description, again.owner) == (first.folder, first.description, first.owner)
    assert content(tmp_path) == before


def broken(folder):
    (folder / "train" / "b" / "2.png").write_bytes(b"nonsense")


def uneven(folder):
    Image.new("RGB", (20, 10)).save(folder / "test" / "b" / "0.png")


def grey(folder):
    Image.new("L", (8, 8)).save(folder / "train" / "b" / "3.png")


def larger_first(pictures):
    Image.new("RGB", (9, 9)).save(pictures / "train" / "a" / "0.png")


BAD = {
    "corrupt": (broken, {}, "image 7 of split"),
    "first is corrupt": (lambda f: (f / "train/a/0.png").write_bytes(b""), {}, "image 0 of split"),
    "sizes": (
        uneven,
        {},
        r"image test:2 \(test/b/0\.png\) is 10x20x3 .* 8x8x3 like image train:0 \(train/a/0\.png\); set image-size",
    ),
    "sizes that no grid fits": (
        larger_first,
        {},
        r"differ in size: image train:0 \(train/a/0\.png\) is 9x9 .*, image train:1 \(.*\) is 8x8; set image-size",
    ),
    "channels": (grey, {}, r"image 8 of split 'train' \(train/b/3\.png\) has 1 channel, image 0 .*a/0\.png\) has 3"),
    "one class": (lambda f: [shutil.rmtree(f / split / "b") for split in ("train", "test")], {}, "one class"),
    "uppers": (lambda f: None, {"num_uppers": 5}, "uppers: 5"),
    "no such Upper": (lambda f: None, {"num_uppers": -1}, "uppers: "),
    "grid": (lambda f: None, {"patch_size": (3, 3), "stride": (3, 3)}, "do not tile"),
    "assignment": (lambda f: None, {"assignment": "random"}, "assignment"),
    "image size": (lambda f: None, {"image_size": (0, 8)}, "image-size"),
    "seed": (lambda f: None, {"seed": -1}, "seed"),
    "no dataset": (shutil.rmtree, {}, "no such folder"),
}


@pytest.mark.parametrize(("damage", "changes", "match"), BAD.values(), ids=BAD)
def test_a_bad_dataset_is_refused_as_for_plain_stores(tmp_path, pictures, monkeypatch, damage, changes, match):
    assert BAD
    monkeypatch.setattr(ingest, "sizes", lambda *_: (4, 2))
    whole = shutil.copytree(pictures, tmp_path / "whole")
    damage(pictures)
    with pytest.raises(PslError) as plain:
        ensure_stores(tmp_path / "plain", request_for(pictures, **changes))
    with pytest.raises(PslError, match=match) as sealed:
        make_sealed(tmp_path, request_for(pictures, **changes))
    assert sealed.type is plain.type
    assert issubclass(sealed.type, DataError | ConfigError)
    assert not (tmp_path / "root").exists() or listing(tmp_path / "root") == []
    shutil.rmtree(pictures, ignore_errors=True)
    shutil.copytree(whole, pictures)
    assert make_sealed(tmp_path, request_for(pictures)).created


def correct(made: StoreSet, who: str, *changes: tuple[int, int]) -> int:
    author = keyfile.load(made.keys / f"{who}.key")
    return LabelBook(made.folder).relabel(manifests.load(made.folder).manifest, author, changes, "misread")


def test_corrected_labels_are_used_and_the_old_ones_can_be_had(tmp_path, pictures):
    made = make_sealed(tmp_path, request_for(pictures))
    assert (made.description.labels_version, made.note) == (0, "")
    assert correct(made, "restorer-2", (1, 1)) == 1
    once = make_sealed(tmp_path, request_for(pictures))
    assert (once.created, once.description.labels_version) == (False, 1)
    assert once.note.startswith("labels: version 1, 1 image relabelled in all, last by restorer-2 on 20")
    assert correct(made, "owner", (1, 0), (11, 0), (10, 1)) == 2
    twice = make_sealed(tmp_path, request_for(pictures))
    assert twice.description.labels_version == 2
    assert twice.note.startswith("labels: version 2, 3 images relabelled in all, last by owner on 20")
    begun = [0] * 5 + [1] * 4 + [0, 0, 1]
    assert made.labels.tolist() == begun
    assert once.labels.tolist() == [0, 1, *begun[2:]]
    assert twice.labels.tolist() == [*begun[:10], 1, 0]
    for version, expected in enumerate((made, once, twice)):
        then = make_sealed(tmp_path, request_for(pictures), labels_version=version)
        assert then.description == expected.description
        assert then.note == expected.note
        np.testing.assert_array_equal(then.labels, expected.labels)
    with pytest.raises(LabelError, match="version 3 is missing") as caught:
        make_sealed(tmp_path, request_for(pictures), labels_version=3)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("committed", [False, True])
def test_a_rotation_that_was_interrupted_costs_nothing(tmp_path, pictures, committed):
    """The set is as it was before, or after; a training neither makes it again nor asks for its end."""

    class Dying(Disk):
        def remove(self, path):
            if path.name == "draft.psl":
                raise KeyboardInterrupt
            super().remove(path)

    def die(*_):
        raise KeyboardInterrupt

    made = make_sealed(tmp_path, request_for(pictures))
    correct(made, "restorer-1", (1, 1))
    before = make_sealed(tmp_path, request_for(pictures))
    owner = keyfile.load(made.keys / "owner.key")
    places = [made.store_path(m) for m in range(made.description.num_uppers)]
    with pytest.raises(KeyboardInterrupt):
        if committed:
            rotate(made.folder, owner, places, Changes(), disk=Dying())
        else:
            rotate(made.folder, owner, places, Changes(), progress=die)
    assert (made.folder / "draft.psl").exists()
    again = make_sealed(tmp_path, request_for(pictures))
    assert not again.created
    assert again.description.fingerprint == before.description.fingerprint
    assert manifests.load(again.folder).manifest.epoch == 1 + committed
    np.testing.assert_array_equal(again.labels, before.labels)
    np.testing.assert_array_equal(images_of(again), files_of(pictures).transpose(0, 3, 1, 2))
    # Of what was committed nothing is left to finish; a draft of what was not goes on.
    assert (made.folder / "draft.psl").exists() is not committed
    if not committed:
        rotate(made.folder, owner, places, Changes())
    correct(made, "owner", (2, 1))
