"""Another user plants links and folders where images are about to be restored."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from psl_flower.errors import StoreExists, StoreUnreachable
from psl_flower.system.files import locked
from psl_flower.system.folders import NewFolder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
STRANGER = 65534


def _as_stranger(act: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may write to, as /tmp is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


def _restore(out: Path) -> None:
    with NewFolder(out) as folder:
        (folder / "image.png").write_bytes(b"secret")


def test_a_link_on_the_way(shared: Path) -> None:
    _as_stranger(lambda: (shared / "theirs").mkdir())
    _as_stranger(lambda: (shared / "out").symlink_to("theirs"))
    with pytest.raises(StoreUnreachable, match="is a link of another user"):
        _restore(shared / "out" / "restored")
    assert not list((shared / "theirs").iterdir())


def test_a_folder_in_which_anyone_may_exchange_it(shared: Path) -> None:
    _as_stranger(lambda: ((shared / "theirs").mkdir(), (shared / "theirs").chmod(0o777)))
    with pytest.raises(StoreUnreachable, match="anyone may exchange it"):
        _restore(shared / "theirs" / "deeper" / "restored")


def test_links_under_the_name_and_under_guessed_ones(shared: Path) -> None:
    _as_stranger(lambda: (shared / "theirs").mkdir())
    for name in (".restored.tmp", f".restored.{'0' * 16}.tmp"):
        _as_stranger(lambda name=name: (shared / name).symlink_to("theirs"))
    _restore(shared / "restored")
    assert (shared / "restored" / "image.png").read_bytes() == b"secret"
    assert (shared / "restored").stat().st_mode & 0o777 == 0o700
    _as_stranger(lambda: (shared / "second").symlink_to("theirs"))
    with pytest.raises((StoreExists, StoreUnreachable)):
        _restore(shared / "second")
    assert not list((shared / "theirs").iterdir())


def test_links_of_ones_own_are_followed(shared: Path) -> None:
    (shared / "mine").mkdir()
    (shared / "link").symlink_to("mine")
    _restore(shared / "link" / "restored")
    assert (shared / "mine" / "restored" / "image.png").exists()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """It would make, or empty, a file elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    for content in (None, b"somebody's"):
        if content is not None:
            elsewhere.write_bytes(content)
        (tmp_path / ".lock").unlink(missing_ok=True)
        (tmp_path / ".lock").symlink_to(elsewhere)
        with pytest.raises(StoreUnreachable, match="cannot be locked"), locked(tmp_path / ".lock", timeout_s=1):
            pass
        assert (elsewhere.read_bytes() if elsewhere.exists() else None) == content


def _hold(path: Path) -> None:
    """Lock a file that can be read, as any program may."""
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("older", [False, True])
def test_a_stranger_cannot_hold_a_lock_file(shared: Path, older: bool) -> None:
    """Who may read a file may lock it; locks that an older version made are closed, too."""
    lock = shared / ".lock"
    if older:
        lock.touch(0o644)
    with locked(lock):
        pass
    with pytest.raises(AssertionError):
        _as_stranger(lambda: _hold(lock))


def test_a_group_that_shares_a_folder_shares_its_lock(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with locked(tmp_path / ".lock"):
        pass
    assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o660
