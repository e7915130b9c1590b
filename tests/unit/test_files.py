"""Files and folders appear whole or not at all; what the system refuses is one error of ours, with nothing left."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path

import pytest

from psl_flower import errors
from psl_flower.sealed import keyfile
from psl_flower.sealed.folders import LocalFolder
from psl_flower.sealed.identities import Identity, Role
from psl_flower.system.files import BUFFER_BYTES, Disk, NewFile, disk_errors, locked, read_file, write_file
from psl_flower.system.folders import NewFolder
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
            with pytest.raises(errors.StoreUnreachable, match=f"{tmp_path}: cannot be read: Permission denied"):
                LocalFolder(tmp_path).list()
            with pytest.raises(errors.StoreUnreachable, match=f"{tmp_path}: cannot be read: Permission denied"):
                NewFolder(tmp_path)


def test_a_key_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (Path("/proc/x/k"), tmp_path / "file" / "k", tmp_path / "file" / "deeper" / "k"):
        with pytest.raises(errors.StoreUnreachable, match="cannot be written"):
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


HIDDEN = re.compile(r"\.f\.[0-9a-f]{16}\.tmp")


@pytest.mark.parametrize("sizes", [[], [0], [3], [BUFFER_BYTES], [BUFFER_BYTES - 1, 2], [5, 3 * BUFFER_BYTES, 7]])
def test_what_is_appended_is_in_the_file(tmp_path: Path, sizes: list[int]) -> None:
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    file = NewFile(tmp_path / "f")
    for part in parts:
        file.write(part)
    (hidden,) = os.listdir(tmp_path)
    assert HIDDEN.fullmatch(hidden)
    file.commit()
    file.abort()
    assert content(tmp_path) == {tmp_path / "f": b"".join(parts)}


def test_hidden_names_are_never_the_same(tmp_path: Path) -> None:
    names = set()
    for _ in range(50):
        file = NewFile(tmp_path / "f")
        names |= set(os.listdir(tmp_path))
        file.abort()
    assert len(names) == 50 and not os.listdir(tmp_path)


def test_what_a_crash_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    left = [".f.0123456789abcdef.tmp", ".f.tmp"]
    others = [".f.0123.tmp", ".g.0123456789abcdef.tmp", ".fx.tmp", "f.tmp", ".f.0123456789ABCDEF.tmp"]
    for name in (*left, *others):
        (tmp_path / name).write_bytes(b"part")
    first, second = NewFile(tmp_path / "f"), NewFile(tmp_path / "f")
    first.write(b"first")
    second.write(b"second")
    first.commit()
    second.commit()
    assert (tmp_path / "f").read_bytes() == b"second"
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "f"])


def test_a_file_that_was_taken_for_a_leftover_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes it between its creation and its lock."""
    flock, taken = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not taken:
            taken.extend(os.listdir(tmp_path))
            (tmp_path / taken[0]).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_file(tmp_path / "f", b"it")
    assert taken and content(tmp_path) == {tmp_path / "f": b"it"}


def test_a_folder_that_a_crash_left_is_removed_and_what_others_make_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".new.0123456789abcdef.tmp"
    left.mkdir()
    (left / "image").write_bytes(b"it")
    first, second = NewFolder(tmp_path / "new"), NewFolder(tmp_path / "new")
    hidden = {first.make(), second.make()}
    assert set(tmp_path.iterdir()) == hidden and len(hidden) == 2
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in hidden} == {0o700}
    first.abort()
    second.commit()
    assert os.listdir(tmp_path) == ["new"]


def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "f").symlink_to(tmp_path / "target")
    write_file(tmp_path / "f", b"new")
    assert (tmp_path / "target").read_bytes() == b"old" and not (tmp_path / "f").is_symlink()
    # Nor is a link that somebody put at the hidden name, if he guessed it.
    (tmp_path / "g-hidden").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("psl_flower.system.files.temporary_name", lambda path: tmp_path / "g-hidden")
    with pytest.raises(errors.StoreUnreachable, match="File exists"):
        write_file(tmp_path / "g", b"new")
    assert not (tmp_path / "elsewhere").exists() and (tmp_path / "g-hidden").is_symlink()


@pytest.mark.parametrize(
    ("mode", "umask", "folder", "expected"),
    [
        (None, 0o022, 0o755, 0o644),
        (None, 0o077, 0o755, 0o644),
        (None, 0o022, 0o700, 0o600),
        (None, 0o022, 0o775, 0o664),
        (None, 0o022, 0o1777, 0o664),  # never for all to write
        (0o600, 0o000, 0o755, 0o600),
        (0o644, 0o077, 0o755, 0o600),
        (0o644, 0o002, 0o775, 0o644),
    ],
)
def test_permissions(tmp_path: Path, mode: int | None, umask: int, folder: int, expected: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(folder)
    before = os.umask(umask)
    try:
        write_file(tmp_path / "folder" / "f", b"it", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder" / "f").stat().st_mode) == expected


@pytest.mark.parametrize("operation", ["make_folder", "create", "write", "sync", "rename", "sync_folder"])
def test_a_refusal_at_any_operation_is_one_error_of_the_callers(tmp_path: Path, operation: str) -> None:
    class Full(Disk):
        pass

    def refuse_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / ".f.hidden"))

    setattr(Full, operation, refuse_full)
    (tmp_path / "f").write_bytes(b"old")
    message = f"^{tmp_path}/f: cannot be written: No space left on device; free some space"
    with pytest.raises(errors.RunError, match=message):
        write_file(tmp_path / "f", b"new", errors.RunError, parents=True, disk=Full())
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == (b"new" if operation == "sync_folder" else b"old")


def test_what_need_not_survive_a_power_cut_is_not_waited_for(tmp_path: Path) -> None:
    class Counting(Disk):
        count = 0

        def sync(self, *_: object) -> None:
            self.count += 1

        sync_folder = sync

    disk = Counting()
    write_file(tmp_path / "f", b"it", durable=False, disk=disk)
    assert disk.count == 0
    write_file(tmp_path / "f", b"it", disk=disk)
    assert disk.count == 2


def refused(path: Path, name: object, advice: str) -> str:
    with pytest.raises(errors.RunError) as caught, disk_errors(path, "listed", errors.RunError, advice=advice):
        raise PermissionError(errno.EACCES, "Permission denied", name)
    return str(caught.value)


def test_a_file_in_a_folder_is_named_where_it_is_known() -> None:
    assert refused(Path("/a"), "/a/b", "ask") == "/a/b: cannot be listed: Permission denied; ask"
    for name in (None, 7, b"/a/b", "/c"):
        assert refused(Path("/a"), name, "") == "/a: cannot be listed: Permission denied"


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"123")
    assert read_file(tmp_path / "f") == read_file(tmp_path / "f", limit=3) == b"123"
    with pytest.raises(errors.StoreUnreachable, match="larger than 2 bytes"):
        read_file(tmp_path / "f", limit=2)
    with pytest.raises(errors.StoreUnreachable, match="cannot be read: Is a directory"):
        read_file(tmp_path)
    for missing in (tmp_path / "g", tmp_path / "f" / "g"):
        with pytest.raises(errors.StoreNotFound, match="cannot be read"):
            read_file(missing)
        with pytest.raises(errors.RunError, match="cannot be read"):
            read_file(missing, errors.RunError)


def test_a_lock_that_another_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    for timeout_s in (0.01, 1.1):
        waited = f"another process has been at work there for {timeout_s} s"
        with locked(tmp_path / ".lock"), pytest.raises(errors.StoreUnreachable, match=waited):
            locked(tmp_path / ".lock", timeout_s=timeout_s).__enter__()
        said = "another process is at work there; waiting for it, at most 1.1 s" in caplog.text
        assert said == (timeout_s > 1)
    with pytest.raises(errors.StoreUnreachable, match="cannot be locked"), locked(tmp_path / "file" / ".lock"):
        pass
