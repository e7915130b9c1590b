"""`psl verify` answers for all that the manifest commits to: stores, labels, audit log; and says what was not given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.security.sealed_commands import psl, sealing


@pytest.fixture
def sealed(folder: Path) -> Path:
    """A dataset with two stores, one label version and a log of one entry."""
    psl(*sealing(folder))
    keys = [word for name in ("alice", "bob") for word in ("--identity", folder / f"{name}.key")]
    psl("restore", "--manifest", folder / "sealed", *keys, "--image", "3", "--out", folder / "restored")
    return folder / "sealed"


def _verify(sealed: Path, status: int, *, manifest: Path | None = None) -> str:
    return psl("verify", *sorted(sealed.glob("store-*")), "--manifest", manifest or sealed, status=status).stdout


def test_all_is_there(sealed: Path) -> None:
    told = _verify(sealed, 0)
    assert f"{sealed / 'labels'}: labels, versions: 1, ok" in told
    assert f"{sealed / 'audit.log'}: audit log, entries: 1, ok" in told


def test_a_store_is_missing(sealed: Path) -> None:
    shutil.rmtree(sealed / "store-001")
    assert "not given, not checked: the store of Upper 1" in _verify(sealed, 3)


def test_labels_are_missing(sealed: Path, tmp_path: Path) -> None:
    shutil.copy(sealed / "manifest.psl", tmp_path / "copy.psl")
    report = json.loads(
        psl("verify", *sorted(sealed.glob("store-*")), "--manifest", tmp_path / "copy.psl", "--json", status=3).stdout
    )
    assert (report["ok"], report["complete"], report["labels"]) == (True, False, None)
    assert report["absent"] == ["the labels"]
    shutil.rmtree(sealed / "labels")
    assert "not given, not checked: the labels" in _verify(sealed, 3)


def test_a_label_version_is_changed_or_missing(sealed: Path) -> None:
    (version,) = (sealed / "labels").glob("*.psl")
    data = version.read_bytes()
    version.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "labels, versions: 0, WRONG" in _verify(sealed, 1)
    version.unlink()
    assert "LabelError" in _verify(sealed, 1)


def test_the_log_is_changed_cut_or_missing(sealed: Path) -> None:
    log = sealed / "audit.log"
    data = log.read_bytes()
    log.write_bytes(data.replace(b"restore", b"rotated", 1))
    assert "AuditLogEdited" in _verify(sealed, 1)
    log.write_bytes(b"")
    assert "AuditLogTruncated" in _verify(sealed, 1)
    log.unlink()
    (sealed / "audit.head").unlink()
    assert "AuditLogTruncated" in _verify(sealed, 1)  # it was seen


def test_the_log_of_a_rotation_is_missing_and_was_never_seen(
    sealed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psl("rotate", "--manifest", sealed, "--owner-key", folder / "owner.key", "--drop-restorer", "carol")
    assert "audit log, entries: 2, ok" in _verify(sealed, 0)
    (sealed / "audit.log").unlink()
    (sealed / "audit.head").unlink()
    monkeypatch.setenv("PSL_STATE", str(folder / "another state"))
    assert "not given, not checked: the audit log" in _verify(sealed, 3)
