"""Folders and key files where they cannot be: one error of the program's own, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psl_flower import errors
from psl_flower.sealed import keyfile
from psl_flower.sealed.disk import NewFolder
from psl_flower.sealed.folders import LocalFolder
from psl_flower.sealed.keys import Identity, Role
from tests.unit.tiny_sealed import content


def refuse(*_: object, **__: object) -> None:
    """Refuse as a folder of somebody else's does; permissions proper do not hold the superuser back."""
    raise PermissionError(13, "Permission denied")


def test_a_new_folder_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for target in (Path("new"), Path("empty"), Path("deep/er"), tmp_path / "absolute"):
        with NewFolder(target) as folder:
            (folder / "file").write_bytes(b"it")
            assert folder.parent == (tmp_path / target).parent
        assert content(target) == {target / "file": b"it"}
    assert sorted(os.listdir()) == ["absolute", "deep", "empty", "new"]


@pytest.mark.parametrize("target", [".", "../here"])
def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Whoever stands in it would go on standing in the one that is gone, and see nothing."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(errors.StoreExists, match="name a new"):
        NewFolder(Path(target))
    assert os.listdir(tmp_path) == ["here"]


def test_a_folder_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("iterdir", "stat"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, refuse)
            with pytest.raises(errors.StoreUnreachable, match=f"cannot read {tmp_path}: Permission denied"):
                LocalFolder(tmp_path).list()
            with pytest.raises(errors.StoreUnreachable, match=f"cannot read {tmp_path}: Permission denied"):
                NewFolder(tmp_path)


def test_a_key_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (Path("/proc/x/k"), tmp_path / "file" / "k", tmp_path / "file" / "deeper" / "k"):
        with pytest.raises(errors.StoreUnreachable, match="cannot create the folder"):
            keyfile.save(Identity.generate(Role.NODE, "node"), path)


def test_a_key_in_a_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", refuse)
        with pytest.raises(errors.StoreUnreachable, match="Permission denied"):
            keyfile.save(Identity.generate(Role.NODE, "node"), tmp_path / "k")


def test_a_name_that_is_refused_in_the_end(tmp_path: Path) -> None:
    """What was to have it, images perhaps, does not stay under another."""
    with pytest.raises(errors.StoreUnreachable, match="cannot"), NewFolder(tmp_path / "new") as folder:
        (folder / "image").write_bytes(b"it")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "somebody's").write_bytes(b"")
    assert os.listdir(tmp_path) == ["new"]


def test_a_mounted_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the one of a container; the kernel would refuse when all has been done."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(errors.StoreExists, match="mounted folder"):
        NewFolder(tmp_path)
