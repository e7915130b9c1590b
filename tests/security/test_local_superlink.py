"""The local SuperLink of `psl train` and other users of this machine: none gets a run, an answer, or a token out of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab

from psl_flower.errors import RunError
from psl_flower.launch import home, only_this_user
from psl_flower.launch.superlink import LocalSuperLink

STRANGER, NOBODY = Path(__file__).with_name("stranger.py"), 65534
START_RUN = "/v1/control/start-run"
APP = {
    "pyproject.toml": b"""
[project]
name = "intruder"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "intruder:app"
clientapp = "intruder:app"
""",
    "intruder.py": b"app = None\n",
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to act as another user takes root")


def request() -> bytes:
    fab, _ = build_fab_from_files(APP)
    return bytes(StartRunRequest(fab=Fab(hash_str="", content=fab)).SerializeToString())


def ask(user: int, port: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-S", str(STRANGER), str(user), str(port), START_RUN], input=request(), capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer) > 20
    return answer


def port_of(link: LocalSuperLink) -> int:
    (port,) = {c.laddr.port for p in home.family(link.home) for c in p.net_connections("inet") if c.status == "LISTEN"}
    return int(port)


@pytest.fixture(scope="module")
def link() -> Iterator[LocalSuperLink]:
    with LocalSuperLink() as started:
        started.wait()
        yield started


@needs_root
def test_another_user_gets_nothing(link: LocalSuperLink) -> None:
    answers = ask(NOBODY, port_of(link))
    assert {name: status for name, status in answers.items() if status} == dict.fromkeys(
        ["health", "run", "forged"], 403
    )
    time.sleep(1)
    assert link.flwr(["list"])["runs"] == []


def test_a_web_page_gets_nothing(link: LocalSuperLink) -> None:
    """Whose name leads here since it was loaded: the browser of this user asks, and names the page."""
    port = port_of(link)

    def status(**headers: str) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", START_RUN, request(), {"Content-Type": "application/protobuf", **headers})
        return connection.getresponse().status

    for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}, {"Host": "127.0.0.1"}):
        assert status(**headers) == 403, headers
    assert link.flwr(["list"])["runs"] == []


@needs_root
def test_what_others_can_see_of_its_processes_lets_them_in_nowhere(link: LocalSuperLink) -> None:
    """They see command lines; the token of Ray is in none, and the folder with all files is closed."""
    family = home.family(link.home)
    tokens = {process.environ()["RAY_AUTH_TOKEN"] for process in family}
    (token,) = tokens
    assert len(family) > 1 and len(token) == 64
    assert not [process for process in family if token in " ".join(process.cmdline())]
    code = f"import os, sys; os.setuid({NOBODY}); [open(path).close() for path in sys.argv[1:]]"
    for path in (link.log, link.home / "config.toml", *(f"/proc/{process.pid}/environ" for process in family)):
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert "PermissionError" in done.stderr, path


def test_its_own_user_gets_a_run(link: LocalSuperLink) -> None:
    """What is refused to others is a request that works."""
    answers = ask(os.geteuid(), port_of(link))
    assert {name: status for name, status in answers.items() if status} == dict.fromkeys(
        ["health", "run", "forged"], 200
    )


@needs_root
def test_without_the_guard_another_user_gets_a_run(tmp_path: Path) -> None:
    """The attack is one: Flower's own SuperLink takes it. So does nobody's SuperLink pass for a guarded one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    link = LocalSuperLink()
    bare = subprocess.Popen(
        [Path(sys.executable).parent / "flower-superlink", "--insecure", "--simulation", "--isolation", "process",
         "--host", "127.0.0.1", "--port", str(port)],
        env={**link._environment, "FLWR_HOME": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        link._process, link._health = bare, f"http://127.0.0.1:{port}/health"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(only_this_user, "HEADER", "date")
            link.wait()
            patch.setattr(only_this_user, "HEADER", "psl-guard")
            patch.setattr("psl_flower.launch.superlink._START_TIMEOUT_S", 1)
            with pytest.raises(RunError, match="is not guarded by psl train: another program took the port"):
                link.wait()
        answers = ask(NOBODY, port)
        assert {name: status for name, status in answers.items() if status} == dict.fromkeys(
            ["health", "run", "forged"], 200
        )
    finally:
        bare.kill()
        bare.wait()
        link.home.rmdir()


def test_whose_connection() -> None:
    """A connection of this user while it is open; none that is closed, of another, or none at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            ours, theirs = server.getsockname(), client.getsockname()
            assert only_this_user.is_of_this_user(theirs, ours)
            assert not only_this_user.is_of_this_user((theirs[0], 1), ours)
            client.close()
            assert not only_this_user.is_of_this_user(theirs, ours)


def test_where_the_kernel_does_not_tell_nobody_is_refused_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in some sandboxes; the simulation then counts as open, and its own user is not shut out."""
    assert only_this_user.can_tell()
    (tmp_path / "tcp").write_text("  sl  local_address rem_address   st\n")
    for listed in (tmp_path / "tcp", tmp_path / "none"):
        monkeypatch.setattr(only_this_user, "_CONNECTIONS", listed)
        assert not only_this_user.can_tell()


# Stands for `psl train`; sleeps until it is killed.
COMMAND = """
import sys, time
from psl_flower.launch.superlink import LocalSuperLink
with LocalSuperLink() as link:
    link.wait()
    print(link.home, flush=True)
    time.sleep(600)
"""


def started() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def gone(folder: Path) -> bool:
    return not folder.exists() and home.family(folder) == []


def test_a_killed_command_leaves_nothing() -> None:
    process, folder = started()
    assert len(home.family(folder)) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while not gone(folder):
        assert time.monotonic() < deadline, home.family(folder)
        time.sleep(0.1)


def test_the_next_command_ends_what_was_left() -> None:
    """Also where its SuperLink could not end itself, being stopped; it ends no other that still has its command."""
    other, kept = started()
    process, folder = started()
    try:
        for left in home.family(folder):
            left.send_signal(signal.SIGSTOP)
        process.kill()
        process.wait()
        time.sleep(1)
        assert not gone(folder)
        home.end_leftovers()
        assert gone(folder)
        assert len(home.family(kept)) >= 2 and kept.is_dir()
    finally:
        other.terminate()
        other.wait()
    assert gone(kept)


def test_nobody_elses_folder_is_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "_temporary_folder", lambda: tmp_path)
    for name in ("psl-left", "psl-fresh", "psl-held", "psl-foreign", "other"):
        (tmp_path / name).mkdir()
    for name in ("psl-left", "psl-held", "psl-foreign", "other"):
        os.close(home.claim(tmp_path / name))
    held = home.claim(tmp_path / "psl-held")
    if os.geteuid() == 0:
        os.chown(tmp_path / "psl-foreign", NOBODY, NOBODY)
    else:
        (tmp_path / "psl-foreign").rename(tmp_path / "foreign")
    home.end_leftovers()
    os.close(held)
    assert {path.name for path in tmp_path.iterdir()} >= {"psl-fresh", "psl-held", "other"}
    assert not (tmp_path / "psl-left").exists()
    assert len(list(tmp_path.glob("*foreign"))) == 1
