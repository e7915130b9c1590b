"""What is appended is what is new, and no image is trained and tested on; what an owner does is checked before it is done."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from psl_flower import errors
from psl_flower.data.account import Account
from psl_flower.errors import ConfigError
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.contents import FILE, read_contents
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.ingest import ingest
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.labels import LabelBook
from tests.security.sealed_commands import PEOPLE, psl, refused
from tests.unit.tiny_pictures import colour, encode, image_folder
from tests.vectors.sealed_support import ArraySource, World


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys for everyone, a folder of pictures, and a memory of its own."""
    monkeypatch.setenv("PSL_STATE", str(tmp_path / "state"))
    for role, name in PEOPLE:
        psl("keygen", role, "--out", tmp_path / f"{name}.key")
    image_folder(tmp_path / "pets", {"cat": 10, "dog": 10}, size=(8, 8))
    return tmp_path


def sealing(folder: Path, *more: str) -> list[str]:
    arguments = ["ingest", str(folder / "pets"), "--out", str(folder / "sealed"), "--patch-size", "4x4", "--json"]
    arguments += ["--owner-key", str(folder / "owner.key"), "--restorer", f"alice={folder / 'alice.key.pub'}"]
    for m in range(2):
        arguments += ["--node-key", str(folder / f"node{m}.key.pub")]
    return [*arguments, *more]


def sealed_levels(folder: Path) -> dict[str, list[int]]:
    """Restore everything and return the grey levels of each split."""
    signed = manifests.load(folder / "sealed")
    out = folder / f"restored-{len(list(folder.glob('restored-*')))}"
    images = ",".join(map(str, range(signed.manifest.num_samples)))
    alice = folder / "alice.key"
    psl("restore", "--manifest", folder / "sealed", "--identity", alice, "--image", images, "--out", out)
    found: dict[str, list[int]] = {"train": [], "test": []}
    from PIL import Image

    for row in csv.DictReader((out / "images.csv").open()):
        found[row["split"]].append(int(np.asarray(Image.open(out / row["file"]))[0, 0, 0]))
    return found


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_of_a_folder_that_has_grown_only_new_images_are_sealed(folder: Path) -> None:
    first = json.loads(psl(*sealing(folder)).stdout)
    assert (first["added"], first["known"]) == (20, 0)
    assert [split["classes"] for split in first["account"]["splits"]] == [{"cat": 8, "dog": 8}, {"cat": 2, "dog": 2}]
    assert Account.load(folder / "sealed" / "account.json") is not None
    for k in range(5):
        (folder / "pets" / "cat" / f"new{k}.png").write_bytes(encode(colour(100 + k, (8, 8))))
        (folder / "pets" / "dog" / f"0-new{k}.png").write_bytes(encode(colour(200 + k, (8, 8))))
    more = json.loads(psl(*sealing(folder, "--append")).stdout)
    assert (more["added"], more["known"], more["images"], more["generation"]) == (10, 20, 30, 2)
    left = {entry["reason"]: entry["count"] for entry in more["account"]["left_out"]}
    assert left == {"sealed before": 20}
    assert sum(sum(split["classes"].values()) for split in more["account"]["splits"]) == 10
    second = Account.load(folder / "sealed" / "account-2.json")
    assert second is not None and sum(split.count for split in second.splits) == 10
    found = sealed_levels(folder)
    levels = [*range(20), *range(100, 105), *range(200, 205)]
    assert sorted(found["train"] + found["test"]) == levels
    assert not set(found["train"]) & set(found["test"])
    before = files_in(folder / "sealed")
    again = json.loads(psl(*sealing(folder, "--append")).stdout)
    assert (again["added"], again["known"], again["generation"]) == (0, 30, 2)
    lines = psl(*[a for a in sealing(folder, "--append") if a != "--json"]).stdout
    assert "nothing new: all 30 images were sealed before; the dataset stays as it is, generation 2" in lines
    assert files_in(folder / "sealed") == before
    psl("verify", *again["stores"], "--manifest", folder / "sealed")


def test_images_that_are_refused_leave_no_draft_behind(folder: Path) -> None:
    """The command as the error asks for it, another one then, is not taken for the end of an interrupted one."""
    wide = folder / "pets" / "cat" / "wide.png"
    wide.write_bytes(encode(colour(50, (16, 8))))
    assert "set image-size" in refused(errors.DataError, *sealing(folder))
    assert not (folder / "sealed" / "draft.psl").exists()
    first = json.loads(psl(*sealing(folder, "--image-size", "8x8")).stdout)
    assert first["images"] == 21


def test_more_images_are_brought_to_the_size_that_was_stated(folder: Path) -> None:
    psl(*sealing(folder, "image-size=8"))
    (folder / "pets" / "cat" / "wider.png").write_bytes(encode(colour(60, (32, 8))))
    bare = ["ingest", folder / "pets", "--out", folder / "sealed", "--owner-key", folder / "owner.key", "--append"]
    more = json.loads(psl(*bare, "--json").stdout)
    assert (more["added"], more["known"], more["images"]) == (1, 20, 21)
    assert more["account"]["image_size"] == [8, 8]
    psl("verify", *more["stores"], "--manifest", folder / "sealed")


def test_where_no_size_was_stated_other_sizes_are_refused(folder: Path) -> None:
    psl(*sealing(folder))
    (folder / "pets" / "cat" / "wider.png").write_bytes(encode(colour(60, (32, 8))))
    assert "set image-size" in refused(errors.DataError, *sealing(folder, "--append"))
    assert not (folder / "sealed" / "draft.psl").exists()
    more = json.loads(psl(*sealing(folder, "--append", "image-size=8x8")).stdout)
    assert (more["added"], more["known"], more["images"]) == (1, 20, 21)
    psl("verify", *more["stores"], "--manifest", folder / "sealed")


CONTRADICTIONS: dict[str, tuple[list[str], str]] = {
    "image size": (
        ["--image-size", "16x8"],
        "image-size: 16x8 is given, but .*sealed was sealed with 8x8; leave it out",
    ),
    "patch": (["patch-size=8x4"], "patch-size: 8x4 is given, but .* sealed with 4x4"),
    "stride": (["--stride", "2x2"], "stride: 2x2 is given, but .* sealed with 4x4"),
    "fit": (["--fit", "pad"], "fit: pad is given, but .* sealed with exact"),
    "margin": (["--margin", "0"], "margin: 0 is given, but .* sealed with 1"),
    "uppers": (["uppers=3"], "uppers: 3 is given, but .* sealed with 2"),
    "background": (["background=black"], "background: black is given, but .* sealed with white"),
    "pixels": (
        ["pixel-range=0..99"],
        r"pixel-range: 0\.\.99 is given, but .* sealed with what the images' format says",
    ),
    "assignment": (["--assignment", "round-robin"], "assignment: round-robin is given, but .* sealed with"),
    "nodes": (
        ["--node-key", "NODE0"],
        "--node-key: is not what .*sealed was sealed with; .* change it with psl rotate",
    ),
    "restorers": (["--restorer", "bob=ALICE"], "--restorer: is not what .* was sealed with"),
    "threshold": (["--threshold", "2"], "--threshold: is not what .* was sealed with"),
    "server": (["--lower-key", "LOWER"], "--lower-key: is not what .* was sealed with"),
}


def test_what_contradicts_the_set_is_refused(folder: Path) -> None:
    names = {"NODE0": folder / "node0.key.pub", "bob=ALICE": f"bob={folder / 'alice.key.pub'}"}
    psl("keygen", "lower", "--out", folder / "lower2.key")
    names["LOWER"] = folder / "lower2.key.pub"
    psl(*sealing(folder, "--margin", "1"))
    bare = ["ingest", folder / "pets", "--out", folder / "sealed", "--owner-key", folder / "owner.key", "--append"]
    before = sorted(os.listdir(folder / "sealed"))
    assert CONTRADICTIONS
    for case, (given, message) in CONTRADICTIONS.items():
        said = refused(ConfigError, *bare, *(names.get(word, word) for word in given))
        assert re.search(message, said), (case, said)
    assert sorted(os.listdir(folder / "sealed")) == before
    # What says the same as the set is no contradiction.
    same = ["image-size=8x8", "margin=1", "uppers=2", "fit=exact", "background=white", "assignment=scatter"]
    assert json.loads(psl(*sealing(folder, "--append", *same)).stdout)["known"] == 20


def test_more_images_are_mapped_as_the_first(folder: Path) -> None:
    psl(*sealing(folder, "background=black"))
    (folder / "pets" / "cat" / "new.png").write_bytes(encode(colour(77, (8, 8))))
    more = json.loads(psl(*sealing(folder, "--append")).stdout)
    assert (more["added"], more["account"]["background"]) == (1, "black")


def test_an_option_and_a_setting_that_say_different_things_are_refused(folder: Path) -> None:
    said = refused(ConfigError, *sealing(folder, "--image-size", "8x8", "image-size=4x4"))
    assert said == "--image-size 8x8 and image-size=4x4 contradict each other; give one of them"
    assert "margins: is no setting of how to read a dataset" in refused(ConfigError, *sealing(folder, "margins=1"))
    first = json.loads(psl(*sealing(folder, "--image-size", "8", "image-size=8x8", "fit=exact")).stdout)
    assert first["images"] == 20


def test_without_its_list_of_contents_a_dataset_is_asked_itself(folder: Path) -> None:
    psl(*sealing(folder))
    (folder / "sealed" / FILE).unlink()
    (folder / "pets" / "cat" / "new.png").write_bytes(encode(colour(100, (8, 8))))
    more = json.loads(psl(*sealing(folder, "--append")).stdout)
    assert (more["added"], more["known"]) == (1, 20)
    assert (folder / "sealed" / FILE).exists()
    # So it is after a rotation, which leaves the images as they are.
    psl("rotate", "--manifest", folder / "sealed", "--owner-key", folder / "owner.key", "--drop-node", "0")
    bare = ["ingest", folder / "pets", "--out", folder / "sealed", "--owner-key", folder / "owner.key", "--append"]
    assert "--node-key" in refused(ConfigError, *sealing(folder, "--append"))  # one of them holds nothing any more
    assert json.loads(psl(*bare, "--json").stdout)["added"] == 0
    (folder / "sealed" / FILE).unlink()
    assert json.loads(psl(*bare, "--json").stdout)["known"] == 21


def test_the_list_of_contents_is_the_owners_own(folder: Path, tmp_path: Path) -> None:
    psl(*sealing(folder))
    path = folder / "sealed" / FILE
    assert path.stat().st_mode & 0o077 == 0
    signed, owner = manifests.load(folder / "sealed"), keyfile.load(folder / "owner.key")
    folders = [open_folder(folder / "sealed" / f"store-{m:03d}") for m in range(2)]
    found = read_contents(folder / "sealed", signed, owner, folders)
    assert len(found) == len(set(found)) == 20
    assert not any(digest in path.read_bytes() for digest in found)
    stranger = Identity.generate(Role.OWNER, "stranger")
    with pytest.raises(errors.KeyMismatch):
        read_contents(folder / "sealed", signed, stranger, folders)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.SignatureInvalid):
        read_contents(folder / "sealed", signed, owner, folders)


def test_an_image_that_has_changed_its_class_or_comes_twice(folder: Path) -> None:
    psl(*sealing(folder))
    (folder / "pets" / "cat" / "0.png").rename(folder / "pets" / "dog" / "moved.png")
    more = json.loads(psl(*sealing(folder, "--append")).stdout)
    assert (more["added"], more["relabelled"]) == (0, 1)
    lines = psl(*[a for a in sealing(folder, "--append") if a != "--json"]).stdout
    ((image, name),) = more["classes_here"].items()
    assert name == "dog"
    assert f"1 of those sealed before has another class here ({image} dog): psl relabel" in lines


def test_a_new_image_in_both_splits_is_trained_on(tmp_path: Path) -> None:
    world = World(tmp_path / "sealed")
    world.seal(ArraySource(train=8, test=3, seed=1))
    more = ArraySource(train=4, test=2, seed=2)
    more.images["test"][0] = more.images["train"][3]
    done = world.seal(more, append=True)
    assert (done.added, done.known) == (5, 1)
    assert [(part.name, part.count) for part in world.signed.manifest.splits[2:]] == [("train", 4), ("test", 1)]


def test_an_interrupted_append_goes_on_with_new_images_only(tmp_path: Path) -> None:
    world = World(tmp_path / "sealed")
    first = ArraySource(train=40, test=5, seed=1)
    world.seal(first)
    more = ArraySource(train=60, test=9, seed=2)
    more.images["train"][:20] = first.images["train"][:20]

    class Stop(Exception):
        pass

    def stop(split: str, done: int, total: int) -> None:
        if split == "test":
            raise Stop

    with pytest.raises(Stop):
        ingest(more, world.out, world.owner, world.plan(), append=True, progress=stop)
    done = world.seal(more, append=True)
    assert (done.before, done.added + done.resumed, done.known) == (45, 49, 20)
    images = world.images()
    assert len(images) == 94 == len({image.tobytes() for image in images})


# --- what an owner and a restorer give


def test_one_node_key_for_two_uppers_is_refused(folder: Path) -> None:
    same = [a.replace("node1", "node0") for a in sealing(folder)]
    assert "Upper 0 and Upper 1 have the same key" in refused(ConfigError, *same)
    assert not (folder / "sealed" / "manifest.psl").exists()
    psl(*sealing(folder))
    rotating = ["rotate", "--manifest", folder / "sealed", "--owner-key", folder / "owner.key"]
    message = refused(ConfigError, *rotating, "--node-key", f"1={folder / 'node0.key.pub'}")
    assert "whole images" in message
    psl(*rotating, "--node-key", f"1={folder / 'node0.key.pub'}", "--drop-node", "0")


PASSPHRASES = [
    (b"correct horse", b"correct horse\r\n"),
    (b"correct horse\n", codecs.BOM_UTF8 + b"correct horse\r\nsecond line"),
    ("pässwörd\n".encode(), codecs.BOM_UTF8 + "pässwörd".encode()),
    (b"with\x0cform feed\n", b"with\x0cform feed"),
]


@pytest.mark.parametrize(("made_with", "opened_with"), PASSPHRASES)
def test_line_ends_and_marks_are_no_part_of_a_passphrase(folder: Path, made_with: bytes, opened_with: bytes) -> None:
    assert PASSPHRASES
    file = folder / "passphrase"
    file.write_bytes(made_with)
    psl("keygen", "restorer", "--out", folder / "dora.key", "--passphrase-file", file)
    file.write_bytes(opened_with)
    assert keyfile.load(folder / "dora.key", lambda name: keyfile.passphrase_in(file, name)).name == "dora"


@pytest.mark.parametrize("wrong", [b"p\xe4ssword\n", "pässword".encode("utf-16"), b"\n", b""])
def test_a_passphrase_that_is_not_utf8_opens_nothing(folder: Path, wrong: bytes) -> None:
    file = folder / "passphrase"
    file.write_text("p\ufffdssword\n", encoding="utf-8")
    psl("keygen", "node", "--out", folder / "dora.key", "--passphrase-file", file)
    file.write_bytes(wrong)
    with pytest.raises(errors.PassphraseError, match="UTF-8|empty"):
        keyfile.load(folder / "dora.key", lambda name: keyfile.passphrase_in(file, name))
    ring = KeyRing(folder / "dora.key", file)
    with pytest.raises(errors.PassphraseError, match="UTF-8|empty"):
        ring.find(keyfile.load_public(str(folder / "dora.key")))


def test_key_files_survive_an_editor_of_another_system(folder: Path) -> None:
    path, public = folder / "alice.key", folder / "alice.key.pub"
    plain, text = path.read_bytes(), public.read_bytes()
    windows = plain.replace(b"\n", b"\r\n")
    for changed in (windows, codecs.BOM_UTF8 + plain, codecs.BOM_UTF8 + windows, plain.rstrip(b"\n"), windows[:-2]):
        path.write_bytes(changed)
        assert keyfile.load(path).name == "alice"
    for changed in (plain.replace(b"\n", b"\r"), plain.replace(b"\n", b"\r\n", 1), plain + b"\n", b" " + plain):
        path.write_bytes(changed)
        with pytest.raises(errors.IdentityError):
            keyfile.load(path)
    expected = keyfile.load_public(text.decode())
    for changed in (codecs.BOM_UTF8 + text, text.rstrip(b"\n"), text.replace(b"\n", b"\r\n")):
        public.write_bytes(changed)
        assert keyfile.load_public(str(public)) == expected


def test_two_labels_for_one_image_are_refused(folder: Path) -> None:
    psl(*sealing(folder))
    table = folder / "labels.csv"
    arguments = ["relabel", "--manifest", folder / "sealed", "--identity", folder / "alice.key", "--csv", table]
    table.write_text("image,label\n0,dog\ntrain:0,cat\n")
    assert "image train:0 (0) is given two classes, 'dog' and 'cat'" in refused(ConfigError, *arguments)
    manifest, owner = manifests.load(folder / "sealed").manifest, keyfile.load(folder / "owner.key")
    cat = LabelBook(folder / "sealed").read(manifest, owner).labels_N.tolist().index(0)
    table.write_text(f"image,label\n{cat},dog\ntrain:{cat},dog\n")
    assert "1 of 1 label changed" in psl(*arguments).stdout
    table.write_text('image,label\n"3,4",dog\n4,cat\n')
    assert "two classes" in refused(ConfigError, *arguments)


def test_a_memory_that_cannot_be_written_is_said_before_anything_is_sealed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("PSL_STATE", str(folder / "file" / "state"))
    message = refused(errors.StoreUnreachable, *sealing(folder))
    assert "set PSL_STATE" in message
    assert not (folder / "sealed").exists()
    monkeypatch.setenv("PSL_STATE", str(folder / "state"))
    psl(*sealing(folder))
    before = (folder / "sealed" / "manifest.psl").read_bytes()
    monkeypatch.setenv("PSL_STATE", str(folder / "file" / "state"))
    rotating = ["rotate", "--manifest", folder / "sealed", "--owner-key", folder / "owner.key"]
    refused(errors.StoreUnreachable, *rotating)
    assert (folder / "sealed" / "manifest.psl").read_bytes() == before
    assert os.listdir(folder / "sealed").count("draft.psl") == 0
