"""Sealed stores on another machine, over SSH: written by the owner, verified, appended to, restored from, read by the node."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psl_flower.cli.main import main
from psl_flower.data.sources import open_dataset
from psl_flower.errors import CorruptImage, PatchServerLost, StoreNotFound, StoreUnreachable
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.verify import verify
from psl_flower.stores.opening import open_store
from tests.unit.ssh_host import SshHost
from tests.vectors.sealed_support import ArraySource, World


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshHost]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PSL_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with contextlib.closing(SshHost(tmp_path / "far", tmp_path / "home")) as made:
        yield made


def psl(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_the_owners_and_restorers_commands(host: SshHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner, alice = tmp_path / "owner.key", tmp_path / "alice.key"
    psl(capsys, "keygen", "owner", "--out", owner)
    psl(capsys, "keygen", "restorer", "--out", alice)
    nodes = [tmp_path / f"node{m}.key" for m in range(2)]
    for node in nodes:
        psl(capsys, "keygen", "node", "--out", node)
    sealed, urls = tmp_path / "sealed", [host.url(f"patches/{m}") for m in range(2)]
    places = ["--out", sealed, *(word for m in range(2) for word in ("--out", f"{m}={urls[m]}"))]
    keys = ["--owner-key", owner, *(word for node in nodes for word in ("--node-key", f"{node}.pub"))]
    people = ["--restorer", f"alice={alice}.pub"]
    made = psl(capsys, "ingest", "digits", *places, *keys, *people, "--max-train", "20", "--max-test", "5")
    assert (made["added"], made["stores"]) == (25, urls)
    assert sorted(path.name for path in sealed.iterdir() if path.is_dir()) == ["labels"]
    assert sorted(p.name for p in host.folder.rglob("*") if p.is_file()) == [
        "epoch-0001-segment-000000.psl", "epoch-0001-segment-000000.psl", "manifest.psl", "manifest.psl",
    ]  # fmt: skip

    more = psl(
        capsys, "ingest", "digits", *places, "--owner-key", owner, "--append", "--max-train", "30", "--max-test", "1"
    )
    assert (more["generation"], more["images"]) == (2, 35)
    checked = psl(capsys, "verify", *urls, "--manifest", sealed)
    assert checked["ok"] and [store["records"] for store in checked["stores"]] == [35, 35]
    psl(
        capsys, "restore", "--manifest", sealed, "--store", urls[1], "--store", urls[0], "--identity", alice,
        "--image", "3,25", "--out", tmp_path / "restored",
    )  # fmt: skip
    first, second = (open_dataset("digits", max_train=count, max_test=1) for count in (20, 30))
    # Each generation has an order of its own; the second holds what the first does not.
    for source, known, name in ((first, 0, "train-000003"), (second, 20, "train-000020")):
        restored = np.asarray(Image.open(tmp_path / "restored" / f"{name}.png"))
        assert sum((restored == image.squeeze()).all() for image, _ in source.samples("train", known)) == 1

    rotated = psl(
        capsys,
        "rotate",
        "--manifest",
        sealed,
        "--owner-key",
        owner,
        "--store",
        urls[0],
        "--store",
        urls[1],
        "--delete-old",
    )
    assert rotated["epoch"] == 2
    assert {p.name[:10] for p in host.folder.rglob("*segment*")} == {"epoch-0002"}
    near = open_store(host.folder / "patches" / "1", KeyRing(nodes[1]))
    far = open_store(urls[1], KeyRing(nodes[1]))
    samples = np.random.default_rng(0).permutation(35)
    np.testing.assert_array_equal(far.read(samples), near.read(samples))
    far.close()


def test_a_broken_connection_while_writing(host: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second segment does not arrive; the next try begins with it, and nothing of the broken one is left."""
    monkeypatch.setattr("psl_flower.sealed.ingest.sizes", lambda *_: (8, 4))
    world, source, places = World(tmp_path / "out"), ArraySource(20, 2), {1: host.url("store")}
    host.breaks_at = "segment-000001"
    with pytest.raises(StoreUnreachable, match=f"ssh://127.0.0.1:{host.port}/store"):
        world.seal(source, places=places)
    assert [path.name for path in (host.folder / "store").iterdir()] == ["epoch-0001-segment-000000.psl"]
    host.breaks_at = "nothing"
    done = world.seal(source, places=places)
    assert (done.resumed, done.added) == (8, 14)
    report = verify([world.place(0), places[1]], world.signed)
    assert report.ok and not any(store.strangers for store in report.stores)
    store = SealedStore.open(places[1], world.nodes[1], owner=world.owner.public)
    expected = world.signed.manifest.description.grid().split(source.all_NCHW)[:, list(store.meta.positions)]
    np.testing.assert_array_equal(store.read(np.arange(22)), expected)
    store.close()


def test_images_that_fail_leave_no_half_segment(host: SshHost, tmp_path: Path) -> None:
    class Failing(ArraySource):
        def samples(self, *which: Any) -> Iterator[tuple[np.ndarray, int]]:
            yield from super().samples(*which)
            raise CorruptImage("the last one")

    with pytest.raises(CorruptImage):
        World(tmp_path / "out").seal(Failing(300, 0), places={0: host.url("store")})
    assert list((host.folder / "store").iterdir()) == []


def test_a_host_that_goes_while_the_node_reads(host: SshHost, tmp_path: Path) -> None:
    world, url = World(tmp_path / "out"), host.url("store")
    world.seal(ArraySource(20, 2), places={0: url})
    store = SealedStore.open(url, world.nodes[0])
    store.read(np.array([3, 1]))
    host.stop()
    with pytest.raises(PatchServerLost, match=f"ssh://127.0.0.1:{host.port}/store"):
        store.read(np.array([2]))
    store.close()
    host.start()
    assert len(SealedStore.open(url, world.nodes[0]).read(np.array([2]))) == 1


def test_a_process_that_leaves_files_open_ends(host: SshHost, tmp_path: Path) -> None:
    open_folder(host.url("store")).write("segment", bytes(100))
    script = (
        "import sys; from psl_flower.sealed.folders import open_folder; folder = open_folder(sys.argv[1]);"
        "print(len(folder.ranges('segment', [10], 50)[0])); draft = folder.draft('more'); raise SystemExit(3)"
    )
    done = subprocess.run([sys.executable, "-c", script, host.url("store")], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("50\n", 3)


def test_refusals_say_what_to_do_and_no_password(host: SshHost, tmp_path: Path) -> None:
    def refusal(url: str) -> str:
        with pytest.raises(StoreUnreachable) as caught:
            open_folder(url).write("manifest.psl", b"x")
        assert "s3cret" not in str(caught.value) and str(host.port) in str(caught.value)
        return str(caught.value)

    open_folder(host.url("store")).write("manifest.psl", b"x")
    with pytest.raises(StoreNotFound, match="segment does not exist"):
        open_folder(host.url("store")).size("segment")
    host.read_only = True
    assert "access denied" in refusal(host.url("store"))
    host.read_only = False
    (tmp_path / "home" / ".ssh" / "id_ed25519").unlink()
    assert "access denied; check the credentials" in refusal(host.url("store", "me:s3cret@"))
    known, _ = host.known.read_text(), host.known.write_text("")
    assert "~/.ssh/known_hosts" in refusal(host.url("store", "me:s3cret@"))
    host.known.write_text(known)
    host.stop()
    assert "Connection refused" in refusal(host.url("store", "me:s3cret@"))
    host.start()


def test_places_that_cannot_be_urls_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would become folders called ssh: here."""
    key = tmp_path / "owner.key"
    url = ("--out", "ssh://me:s3cret@host/x", "--owner-key", str(key))
    psl(capsys, "keygen", "owner", "--out", key)
    psl(capsys, "keygen", "node", "--out", tmp_path / "node.key")
    for command in (
        ("ingest", "digits", *url, "--node-key", f"{tmp_path / 'node.key'}.pub"),
        ("receive", str(tmp_path / "bundle"), *url[:2], "--owner", f"{key}.pub", "--key", str(tmp_path / "node.key")),
    ):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: --out: ") and "s3cret" not in said
    elsewhere = (
        "--out",
        str(tmp_path / "out"),
        "--out",
        "7=ssh://host/x",
        "--node-key",
        f"{tmp_path / 'node.key'}.pub",
    )
    assert main(["ingest", "digits", "--owner-key", str(key), *elsewhere]) == 1
    assert "there is no Upper 7" in capsys.readouterr().err
