"""The owner's and the restorers' commands, from keys to restored images, on real digits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from psl_flower import errors
from psl_flower.errors import ConfigError
from psl_flower.sealed import keyfile
from tests.security.sealed_commands import another_label, app, originals, psl, refused, sealing
from tests.vectors.sealed_support import Killed


def test_the_grid_is_chosen_from_the_images(folder: Path) -> None:
    arguments = sealing(folder)
    arguments[arguments.index("8x8")] = "auto"
    assert "grid: brightness turns 1." in psl(*arguments).stdout
    report = json.loads(
        psl(*[str(folder / "again") if a == str(folder / "sealed") else a for a in arguments], "--json").stdout
    )
    assert "so auto chose 2x2 patches of 8x8" in report["grid"]
    arguments[arguments.index("60")] = "90"
    appended = psl(*arguments, "--append").stdout
    assert "grid:" not in appended
    assert "generation 2: 110 images in 2 stores, 8x8 patches" in appended
    assert "left out: 80 (sealed before)" in appended
    assert "--patch auto also chooses the stride" in refused(ConfigError, *arguments, "--stride", "4x4")


def test_several_keys_are_made_at_once_or_none(tmp_path: Path) -> None:
    keys = [tmp_path / f"node{m}.key" for m in range(3)]
    report = json.loads(psl("keygen", "node", keys[0], keys[1], "--out", keys[2], "--json").stdout)
    assert [(key["name"], key["file"]) for key in report["keys"]] == [(f"node{m}", str(keys[m])) for m in range(3)]
    assert len({key["public"] for key in report["keys"]}) == 3
    assert keyfile.load(keys[1]).role == "node"
    new = tmp_path / "new.key"
    refused(errors.StoreExists, "keygen", "node", new, keys[1])
    assert "twice" in refused(ConfigError, "keygen", "node", new, "--out", new)
    assert "twice" in refused(ConfigError, "keygen", "node", new, f"{new}.pub")
    assert "--name goes with one key" in refused(ConfigError, "keygen", "node", new, tmp_path / "b.key", "--name", "b")
    assert not new.exists()
    assert "psl keygen node node.key" in psl("keygen", "node", status=2).output


def test_from_keys_to_a_corrected_label(folder: Path) -> None:
    out, people = folder / "sealed", [folder / f"{name}.key" for name in ("alice", "carol")]
    report = json.loads(psl(*sealing(folder, "sealed", "--json")).stdout)
    assert (report["images"], report["added"], report["generation"]) == (80, 80, 1)
    refused(errors.StoreExists, *sealing(folder))
    stores = report["stores"]
    assert json.loads(psl("verify", *stores, "--manifest", out, "--json").stdout)["ok"]

    both = [text for path in people for text in ("--identity", path)]
    images = ["--image", "3", "--image", "test:7,test:8"]
    restored = folder / "restored"
    psl("restore", "--manifest", out, *both, *images, "--out", restored, "--why", "a look")
    expected = originals(folder)
    for name, index in (("train-000003", 3), ("test-000007", 67), ("test-000008", 68)):
        assert (np.asarray(Image.open(restored / f"{name}.png")) == expected[index, :, :, 0]).all()
    assert (restored / "sheet-0001.png").exists()
    too_few = refused(
        errors.TooFewShares,
        "restore",
        "--manifest",
        out,
        "--identity",
        people[0],
        *images,
        "--out",
        folder / "no",
    )
    assert "2 restorers are needed, 1 is here; add the keys of others with --identity" in too_few
    # What cannot be written is not logged as restored.
    log = (out / "audit.log").read_bytes()
    refused(errors.StoreExists, "restore", "--manifest", out, *both, *images, "--out", restored)
    in_the_way = out / "manifest.psl" / "under" / "a-file"
    refused(errors.StoreUnreachable, "restore", "--manifest", out, *both, *images, "--out", in_the_way)
    # Nor is anything restored past the set's own log.
    elsewhere = ("--audit-log", folder / "other.log")
    refused(errors.ConfigError, "restore", "--manifest", out, *both, *images, "--out", folder / "no", *elsewhere)
    assert not (folder / "other.log").exists() and not (folder / "no").exists()
    assert (out / "audit.log").read_bytes() == log
    assert "3 images: train:3 (3), test:7 (67), test:8 (68)" in psl("audit-log", "--manifest", out).stdout
    refused(errors.ConfigError, "restore", "--manifest", out, *both, "--out", folder / "no")
    assert not (folder / "no").exists()

    label = another_label(folder, 3, 5, 9, 10, 62, 67)
    psl(
        "relabel",
        "--manifest",
        out,
        "--identity",
        people[0],
        "--image",
        "3",
        "--label",
        label,
        "--why",
        "misread",
    )
    table = folder / "changes.csv"
    table.write_text(f"image,label\ntest:7,{label}\n5,{label}\n")
    psl("relabel", "--manifest", out, "--identity", folder / "owner.key", "--csv", table)
    history = json.loads(psl("relabel", "--manifest", out, "--identity", people[1], "--history", "--json").stdout)
    assert [(v["version"], v["kind"], v["who"], v["why"]) for v in history["versions"]][:2] == [
        (0, "images", "owner", "ingest"),
        (1, "relabel", "alice", "misread"),
    ]
    assert history["versions"][1]["changes"][0][::2] == [3, int(label)]
    corrected: list[str | Path] = ["relabel", "--manifest", out, "--identity", people[0], "--label", label]
    psl(*corrected, "--image", "9,test:2")
    history = json.loads(psl("relabel", "--manifest", out, "--identity", people[1], "--history", "--json").stdout)
    assert {change[2] for change in history["versions"][3]["changes"]} == {int(label)}
    assert len(history["versions"][3]["changes"]) == 2
    assert "no image is named" in refused(errors.ConfigError, *corrected, "--image", ",")
    command = f"psl relabel --manifest {out} --identity KEY --history"
    assert command in psl(*corrected, "--image", "10", "--why", "smudged").stdout
    listed = psl("relabel", "--manifest", out, "--identity", people[1], "--history").stdout
    assert "relabel  alice  smudged" in listed and "10 (train:10): " in listed
    assert command in psl("audit-log", "--manifest", out).stdout
    refused(
        errors.ConfigError,
        "relabel",
        "--manifest",
        out,
        "--identity",
        people[0],
        "--image",
        "3",
        "--label",
        "x",
    )

    psl(
        "rotate",
        "--manifest",
        out,
        "--owner-key",
        folder / "owner.key",
        "--drop-restorer",
        "carol",
        "--delete-old",
    )
    message = refused(errors.RevokedRestorer, "restore", "--manifest", out, *both, *images, "--out", folder / "no")
    assert "carol" in message
    assert not list(out.rglob("epoch-0001*"))
    entries = json.loads(psl("audit-log", "--manifest", out, "--json").stdout)["entries"]
    assert next((e["action"], e["images"], e["why"]) for e in entries) == ("restore", [3, 67, 68], "a look")
    assert entries[0]["names"] == ["train:3", "test:7", "test:8"]
    log = out / "audit.log"
    log.write_text("")
    refused(errors.AuditLogTruncated, "audit-log", "--manifest", out)


def test_an_older_manifest_is_refused(folder: Path) -> None:
    out = folder / "sealed"
    psl(*sealing(folder))
    old = (out / "manifest.psl").read_bytes()
    append: list[str | Path] = [
        "--append",
        "--owner-key",
        folder / "owner.key",
        "--max-train",
        "70",
        "--max-test",
        "1",
    ]
    psl("ingest", "digits", "--out", out, *append)
    correcting: list[str | Path] = ["relabel", "--manifest", out, "--identity", folder / "bob.key"]
    psl(*correcting, "--image", "train:65", "--label", another_label(folder, 85))
    (out / "labels" / "000002.psl").unlink()
    refused(errors.LabelError, "relabel", "--manifest", out, "--identity", folder / "bob.key", "--history")
    (out / "manifest.psl").write_bytes(old)
    both: list[str | Path] = ["--identity", folder / "alice.key", "--identity", folder / "bob.key"]
    restoring: list[str | Path] = [
        "restore",
        "--manifest",
        out,
        *both,
        "--image",
        "3",
        "--out",
        folder / "no",
    ]
    refused(errors.StaleManifest, *restoring)
    refused(errors.StaleManifest, *restoring, "--state", folder / "fresh")  # the stores are newer, too
    assert not (folder / "no").exists()


def test_bundles_and_places(folder: Path) -> None:
    psl(*sealing(folder, "sealed", "--spool", str(folder / "spool")))
    bundle = folder / "spool" / "node-001.pslbundle"
    arguments: list[str | Path] = [
        "receive",
        bundle,
        "--owner",
        folder / "owner.key.pub",
        "--out",
        folder / "received",
    ]
    refused(errors.WrongNodeKey, *arguments, "--key", folder / "node0.key")
    psl(*arguments, "--key", folder / "node1.key")
    alone = psl("verify", folder / "received", "--manifest", folder / "sealed", status=3)
    assert "Upper 1, 80 records, ok" in alone.stdout
    assert "INCOMPLETE: not given, not checked: the store of Upper 0\n" in alone.stdout
    bundle.unlink()
    assert json.loads(psl(*sealing(folder, "sealed", "--spool", str(folder / "spool"), "--json")).stdout)["added"] == 0
    assert bundle.exists()
    other = folder / "elsewhere"
    psl(*sealing(folder, "second", "--out", f"1={other}"))
    psl("verify", folder / "second" / "store-000", other, "--manifest", folder / "second")
    append: list[str | Path] = [
        "ingest",
        "digits",
        "--out",
        folder / "second",
        "--owner-key",
        folder / "owner.key",
        "--append",
    ]
    assert "--out 1=PLACE" in refused(errors.StoreNotFound, *append, "--max-train", "10", "--max-test", "1")


def test_bundles_and_more_images_after_a_node_was_dropped(folder: Path) -> None:
    """The Upper is 0 now, its folder is still that of Upper 1."""
    psl(*sealing(folder))
    out, key, spool = folder / "sealed", folder / "owner.key", str(folder / "spool")
    psl("rotate", "--manifest", out, "--owner-key", key, "--drop-node", "0")
    report = json.loads(psl(*sealing(folder, "sealed", "--spool", spool, "--json")).stdout)
    assert report["stores"] == [str(out / "store-001")]
    (bundle,) = report["bundles"]
    receiving: list[str | Path] = ["receive", bundle, "--owner", folder / "owner.key.pub"]
    psl(*receiving, "--key", folder / "node1.key", "--out", folder / "received")
    append: list[str | Path] = ["ingest", "digits", "--out", out, "--owner-key", key, "--append", "--spool", spool]
    report = json.loads(psl(*append, "--max-train", "70", "--max-test", "21", "--json").stdout)
    assert (report["images"], report["stores"]) == (91, [str(out / "store-001")])
    psl(*receiving, "--key", folder / "node1.key", "--out", folder / "again")
    psl("verify", folder / "again", "--manifest", out)


def test_a_threshold_without_restorers_leaves_nothing_in_the_way(folder: Path) -> None:
    arguments = sealing(folder)
    at = arguments.index("--restorer")
    without = arguments[:at] + arguments[at + 6 :]
    assert "threshold 2" in refused(ConfigError, *without)
    assert json.loads(psl(*arguments, "--json").stdout)["added"] == 80


def test_an_authorisation_that_is_signed_twice_is_not_written(folder: Path) -> None:
    psl(*sealing(folder))
    asking: list[str | Path] = ["authorise", "--manifest", folder / "sealed", "--identity", folder / "alice.key"]
    twice = [*asking, "--identity", folder / "alice.key", "--image", "3", "--out", folder / "twice.psl"]
    refused(errors.RestoreRefused, *twice)
    psl(*asking, "--image", "3", "--out", folder / "asked.psl")
    refused(errors.RestoreRefused, *asking, "--co-sign", folder / "asked.psl", "--out", folder / "twice.psl")
    assert not (folder / "twice.psl").exists()


def test_places_that_cannot_be_are_refused_in_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    psl(*sealing(folder))
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    restoring: list[str | Path] = ["restore", "--manifest", folder / "sealed", "--image", "3"]
    restoring += ["--identity", folder / "alice.key", "--identity", folder / "bob.key"]
    refused(errors.StoreExists, *restoring, "--out", ".")
    psl(*restoring, "--out", "restored")
    assert (folder / "here" / "restored" / "train-000003.png").exists()
    for place in ("/proc/x/k", folder / "owner.key" / "k"):
        refused(errors.StoreUnreachable, "keygen", "node", "--out", place)


def test_verify_says_what_is_wrong_and_fails(folder: Path) -> None:
    psl(*sealing(folder))
    segment = folder / "sealed" / "store-001" / "epoch-0001-segment-000000.psl"
    data = segment.read_bytes()
    segment.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    stores = [folder / "sealed" / f"store-00{m}" for m in range(2)]
    result = CliRunner().invoke(app, ["verify", *map(str, stores), "--manifest", str(folder / "sealed")])
    assert result.exit_code == 1
    assert "RecordDamaged" in result.output


def test_a_protected_key(folder: Path) -> None:
    word = folder / "word"
    word.write_text("a good passphrase\n")
    key = folder / "protected.key"
    psl("keygen", "owner", "--out", key, "--passphrase-file", word)
    arguments = [a if a != str(folder / "owner.key") else str(key) for a in sealing(folder)]
    refused(errors.PassphraseError, *arguments)
    psl(*arguments, "--passphrase-file", word)


@pytest.mark.parametrize("last", ["psl_flower.sealed.ingest.drop_draft", "psl_flower.cli.ingest.tell"])
def test_an_append_killed_after_its_commit_and_repeated_appends_once(folder: Path, last: str) -> None:
    psl(*sealing(folder))
    append: list[str | Path] = ["ingest", "digits", "--out", folder / "sealed", "--owner-key", folder / "owner.key"]
    append += ["--append", "--max-train", "70", "--max-test", "25", "--json"]

    def die(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as dying, pytest.raises(Killed):
        dying.setattr(last, die)
        psl(*append)
    for _ in range(2):
        report = json.loads(psl(*append).stdout)
        assert (report["generation"], report["images"], report["added"]) == (2, 95, 0)


@pytest.mark.slow
def test_a_killed_ingest_goes_on(folder: Path) -> None:
    """SIGKILL, at several moments; the same command completes it."""
    program = "import sys; from psl_flower.cli.main import main; from psl_flower.sealed import ingest; "
    program += "ingest.sizes = lambda *_: (64, 16); sys.exit(main())"
    arguments = [a for a in sealing(folder, "sealed", "--json") if a not in ("--max-train", "60", "--max-test", "20")]
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        segments = len(list(folder.glob("sealed/store-001/epoch-*"))) + 2
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("sealed/store-001/epoch-*"))) >= segments:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(timeout=120)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    if done.returncode == 0:
        report = json.loads(done.stdout)
        assert report["images"] == 1797
        assert report["resumed"] > 0
    psl("verify", *(folder / "sealed" / f"store-00{m}" for m in range(2)), "--manifest", folder / "sealed")
