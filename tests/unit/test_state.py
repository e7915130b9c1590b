"""The folder of a user's state: where it is, and what earlier versions kept elsewhere is moved there once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from psl_flower.errors import ConfigError, StaleManifest, StoreUnreachable
from psl_flower.sealed.seen import SeenBook, _newest, _Seen
from psl_flower.system.state import node_state, state_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PSL_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_where_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_home() == home / ".local" / "state" / "psl-flower"
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "xdg"))
    assert (state_home(), node_state()) == (home / "xdg" / "psl-flower", home / "xdg" / "psl-flower" / "node")
    monkeypatch.setenv("PSL_STATE", str(home / "named"))
    assert (state_home(), node_state()) == (home / "named", home / "named" / "node")
    assert SeenBook().folder == home / "named"
    assert list(home.iterdir()) == []


def test_a_nodes_state_is_moved_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = home / ".psl-flower" / "state"
    old.mkdir(parents=True)
    (old / "weights").write_bytes(b"it")
    monkeypatch.setenv("PSL_STATE", str(home / "for a while"))
    node_state()
    assert old.exists() and capsys.readouterr().err == ""
    monkeypatch.delenv("PSL_STATE")
    new = home / ".local" / "state" / "psl-flower" / "node"
    assert node_state() == new
    assert (new / "weights").read_bytes() == b"it" and not old.exists()
    assert capsys.readouterr().err == f"psl-flower: moved this user's state from {old} to {new}\n"
    old.mkdir()
    assert node_state() == new and old.exists() and capsys.readouterr().err == ""


def test_the_whole_folder_is_moved_where_xdg_names_another(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = state_home()
    old.mkdir(parents=True)
    (old / "seen.json").write_bytes(b"{}")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "xdg"))
    assert (state_home() / "seen.json").read_bytes() == b"{}" and not old.exists()
    assert f"from {old} to {home / 'xdg' / 'psl-flower'}" in capsys.readouterr().err


def test_what_cannot_be_moved_or_made_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".psl-flower" / "state").mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(StoreUnreachable, match="cannot be moved to .*/node: Permission denied; move it yourself"):
            node_state()
    (home / "file").write_bytes(b"")
    with (
        pytest.raises(StoreUnreachable, match="name another folder with PSL_STATE"),
        SeenBook(home / "file" / "state").open(),
    ):
        pass
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(ConfigError, match="PSL_STATE: name a folder .*no home"):
        state_home()


def seen(generation: int, labels: int, audit: dict[str, int], owner: str = "owner") -> _Seen:
    digest = bytes([generation])
    return _Seen(
        owner=owner, generation=generation, digest=digest, labels=labels, labels_digest=bytes([labels]), audit=audit
    )


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_memories_the_newest_of_each_kind_counts(turned: bool) -> None:
    one, other = seen(3, 1, {"a": 5, "b": 1}), seen(2, 4, {"b": 2, "c": 3})
    found = _newest(other, one) if turned else _newest(one, other)
    assert found == seen(3, 4, {"a": 5, "b": 2, "c": 3})


def test_of_two_owners_the_one_known_counts() -> None:
    known, other = seen(1, 0, {}), seen(9, 9, {}, owner="another")
    assert _newest(known, other) == known


def test_absorbing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = SeenBook(tmp_path / "new")
    book.absorb(tmp_path / "old")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "seen.json").write_bytes(msgspec.json.encode({"ab": seen(2, 0, {})}))
    book.absorb(tmp_path / "old")
    book.absorb(tmp_path / "old")
    assert msgspec.json.decode((tmp_path / "new" / "seen.json").read_bytes(), type=dict[str, _Seen]) == {
        "ab": seen(2, 0, {})
    }
    assert not (tmp_path / "old" / "seen.json").exists()
    assert capsys.readouterr().err.count("moved") == 1
    (tmp_path / "old" / "seen.json").write_bytes(b"{")
    with pytest.raises(StaleManifest, match="damaged"):
        book.absorb(tmp_path / "old")
    assert (tmp_path / "old" / "seen.json").exists()
