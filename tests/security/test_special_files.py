"""Pipes, sockets, folders and dangling links where a file is expected: refused at once, and named as strangers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from psl_flower.errors import PslError
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.bundle import pack, receive
from psl_flower.sealed.identities import Role
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.verify import verify
from psl_flower.system.files import write_file
from tests.security.sealed_bytes import SEGMENT
from tests.security.sealed_commands import make_keys
from tests.vectors.sealed_support import World


def _socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.fchdir(here)
    os.close(here)


MAKERS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "folder": os.mkdir,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """What puts something else in the place of a file."""

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        MAKERS[request.param](path)

    return put


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Whatever waits is interrupted."""

    def waits(*_: object) -> None:
        raise AssertionError("waits for ever")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_in_the_place_of_a_segment(world: World, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(world.place(0) / SEGMENT)
    first, second = verify(world.places, world.signed).stores
    assert first.problems
    assert not second.problems
    with pytest.raises(PslError):
        world.open(0).read(np.arange(2))
    with pytest.raises(PslError):
        pack(world.place(0), world.signed.manifest.stores[0], world.signed, tmp_path / "bundle")


def test_in_the_place_of_a_manifest(world: World, make: Callable[[Path], None]) -> None:
    make(world.place(0) / manifests.FILE)
    assert verify(world.places, world.signed).stores[0].problems
    make(world.out / manifests.FILE)
    with pytest.raises(PslError):
        manifests.load(world.out)


def test_in_the_place_of_labels_and_log(world: World, make: Callable[[Path], None]) -> None:
    signed = world.signed
    make(world.out / "labels" / "000000.psl")
    with pytest.raises(PslError):
        LabelBook(world.out).digests(signed.manifest)
    log = AuditLog(world.out / "audit.log")
    log.append(signed, [world.owner], "restore", [0], "a look")
    make(world.out / "audit.log")
    with pytest.raises(PslError):
        log.read(signed.manifest)


def test_in_the_place_of_keys_and_bundles(world: World, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "node.key")
    with pytest.raises(PslError):
        keyfile.load(tmp_path / "node.key")
    with pytest.raises(PslError):
        KeyRing(tmp_path).public(Role.NODE)
    with pytest.raises(PslError):
        keyfile.passphrase_in(tmp_path / "node.key", "a key")
    with pytest.raises(PslError):
        receive(tmp_path / "node.key", world.nodes[0], tmp_path / "received")


def test_beside_the_files_of_a_store(world: World, make: Callable[[Path], None]) -> None:
    make(world.place(0) / "stranger")
    make(world.place(0) / ".hidden")
    report = verify(world.places, world.signed)
    assert report.stores[0].strangers == [".hidden", "stranger"]
    assert report.stores[1].strangers == []


def test_under_the_hidden_name_of_what_is_being_written(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / f".file.{'0' * 16}.tmp")
    write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_pipe_that_the_shell_hands_over_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a good passphrase\n")
    os.close(writing)
    assert keyfile.passphrase_in(Path(f"/dev/fd/{reading}"), "a key") == "a good passphrase"
    os.close(reading)


def test_a_key_through_a_pipe_of_the_shell(tmp_path: Path) -> None:
    make_keys(tmp_path)
    reading, writing = os.pipe()
    os.write(writing, (tmp_path / "alice.key").read_bytes())
    os.close(writing)
    assert keyfile.load(Path(f"/dev/fd/{reading}")).name == "alice"
    os.close(reading)
