"""Servers of Flower behind our guard: what other users of the host, other hosts and web pages get of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from pathlib import Path

import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType

from psl_flower.errors import ConfigError, RunError
from psl_flower.flower import guarded
from psl_flower.flower.guarded import OPEN_TO_NODES, SUPERLINK, SUPERNODE
from psl_flower.launch.only_this_user import OnlyThisUser, Scope, is_of_a_page, is_of_this_user
from tests.paths import ROOT

BIN = Path(sys.executable).parent
STRANGER, NOBODY = Path(__file__).with_name("stranger.py"), 65534
ACQUIRE, START_RUN, FLEET = "/v1/runtime/acquire-task", "/v1/control/start-run", "/v1/fleet/pull-messages"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to act as another user takes root")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def request() -> bytes:
    """Return what asks a SuperNode for the next message, or a SuperLink for the next ServerApp."""
    wanted = [str(TaskType.CLIENT_APP), str(TaskType.SERVER_APP)]
    return bytes(AcquireTaskRequest(supported_task_types=wanted).SerializeToString())


def ask(user: int, port: int, path: str) -> dict[str, int]:
    """Return the status of each answer that a user of this host gets."""
    done = subprocess.run(
        [sys.executable, "-S", str(STRANGER), str(user), str(port), path], input=request(), capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: dict[str, int] = json.loads(done.stdout)
    assert len(answers) > 20
    return {name: status for name, status in answers.items() if status}


def status(port: int, path: str, address: str = "127.0.0.1", **headers: str) -> int:
    """Return the status of the answer to a request of this user."""
    connection = HTTPConnection(address, port, timeout=20)
    connection.request("POST", path, request(), {"Content-Type": "application/protobuf", **headers})
    return connection.getresponse().status


@contextmanager
def serving(program: str, folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "log"
    environment = {
        **os.environ, "FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BIN / program, "--insecure", "--port", str(port), *options], env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    with suppress(OSError, HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status in (200, 403)
    return False


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Give the port of a node's Runtime interface; its SuperLink is nowhere, which does not matter here."""
    port = free_port()
    with serving(
        "psl-supernode", tmp_path_factory.mktemp("node"), port, "--superlink", f"127.0.0.1:{free_port()}"
    ) as p:
        # One process of this id, as systemd and docker know it, which others know by Flower's name.
        command = Path(f"/proc/{p.pid}/cmdline").read_bytes().decode().split("\0")
        assert any(Path(word).name == SUPERNODE for word in command), command
        yield port


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    with serving("psl-superlink", tmp_path_factory.mktemp("link"), port, "--host", "0.0.0.0"):
        yield port


@needs_root
def test_another_user_of_the_host_gets_no_message_of_a_node(node: int) -> None:
    assert ask(NOBODY, node, ACQUIRE) == dict.fromkeys(["health", "run", "forged"], 403)


def test_the_nodes_own_user_gets_its_messages(node: int) -> None:
    """What is refused to others is a request that works."""
    assert ask(os.geteuid(), node, ACQUIRE) == dict.fromkeys(["health", "run", "forged"], 200)


@needs_root
def test_flowers_own_supernode_gives_them_to_anybody(tmp_path: Path) -> None:
    """The attack is one."""
    port = free_port()
    with serving(SUPERNODE, tmp_path, port, "--superlink", f"127.0.0.1:{free_port()}"):
        assert ask(NOBODY, port, ACQUIRE) == dict.fromkeys(["health", "run", "forged"], 200)


def test_a_web_page_gets_nothing(node: int) -> None:
    """Whose name leads here since it was loaded: the browser of this user asks, and names the page."""
    assert status(node, ACQUIRE) == 200
    assert status(node, ACQUIRE, Host=f"localhost:{node}") == 200
    refused = [
        {"Host": f"evil.example:{node}"}, {"Host": "127.0.0.1"}, {"Host": "localhost:1"}, {"Host": ""},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{node}"},
    ]  # fmt: skip
    for headers in refused:
        assert status(node, ACQUIRE, **headers) == 403, headers


@needs_root
def test_a_superlink_gives_strangers_no_server_app_and_no_run(link: int) -> None:
    for path in (ACQUIRE, START_RUN):
        answers = ask(NOBODY, link, path)
        assert (answers["run"], answers["forged"]) == (403, 403), path
    assert ask(NOBODY, link, FLEET)["run"] != 403  # there Flower asks for a node's key


def test_a_superlink_serves_its_own_user(link: int) -> None:
    assert status(link, ACQUIRE) == 200
    assert status(link, START_RUN) != 403


@needs_root
def test_flowers_own_superlink_gives_a_server_app_to_anybody(tmp_path: Path) -> None:
    port = free_port()
    with serving(SUPERLINK, tmp_path, port, "--host", "127.0.0.1"):
        assert ask(NOBODY, port, ACQUIRE)["run"] == 200


def test_another_host_is_nobody_of_this_one() -> None:
    """The kernel lists its end of a connection nowhere; so do paths that only look like a node's not help it."""
    guard = OnlyThisUser(None, tells=True, open_to_all=OPEN_TO_NODES)  # type: ignore[arg-type]

    def serves(path: str) -> bool:
        return guard._serves({**scope(b"lower.example:9092", "https"), "path": path, "client": ("192.0.2.1", 40000)})

    assert all(serves(path) for path in (FLEET, "/v1/fleet/register-node"))
    for path in (ACQUIRE, START_RUN, "/", "/docs", "/health", "/v1/fleet", "/v1/fleetx", "//v1/fleet/", ""):
        assert not serves(path), path


def scope(host: bytes, scheme: str = "http", *others: tuple[bytes, bytes]) -> Scope:
    return {"scheme": scheme, "server": ("127.0.0.1", 9094), "headers": [(b"host", host), *others]}


def test_which_requests_may_be_a_pages() -> None:
    for own in (b"127.0.0.1:9094", b"LOCALHOST:9094", b"[::1]:9094"):
        assert not is_of_a_page(scope(own))
        assert is_of_a_page(scope(own, "http", (b"Origin", b"x")))
        assert is_of_a_page(scope(own, "http", (b"host", b"evil.example:9094")))
    assert is_of_a_page(scope(b"evil.example:9094"))
    assert not is_of_a_page(scope(b"lower.example:9092", "https"))  # the certificate has proved it
    assert is_of_a_page(scope(b"lower.example:9092", "https", (b"origin", b"x")))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_whose_connection_over_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            ours, theirs = server.getsockname()[:2], client.getsockname()[:2]
            assert is_of_this_user(theirs, ours)
            client.close()
            assert not is_of_this_user(theirs, ours)


@pytest.mark.parametrize("program", [SUPERNODE, SUPERLINK])
def test_a_flower_that_starts_its_server_in_an_unknown_way_is_not_started(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, starts = guarded._STARTS[program]
    for missing in (starts, "uvicorn"):
        with monkeypatch.context() as patch:
            patch.delattr(import_module(name), missing)
            with pytest.raises(RunError, match="starts its server in an unknown way"):
                guarded._guard(program)


def test_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(guarded, "can_tell", lambda: False)
    monkeypatch.setattr(guarded, "guard_servers", lambda **_: None)
    guarded._guard(SUPERNODE)
    assert "every user of this host can read this node's messages" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot tell operators from strangers"):
        guarded._guard(SUPERLINK)


def test_other_users_cannot_read_what_a_superlink_writes(tmp_path: Path) -> None:
    """Its database has the tokens of runs; started by hand, no unit's UMask protects it."""
    port, before = free_port(), os.umask(0o022)
    try:
        with serving("psl-superlink", tmp_path, port, "--database", str(tmp_path / "superlink.db")):
            written = [path for path in tmp_path.glob("superlink.db*")]
            assert written
            assert {path.stat().st_mode & 0o077 for path in written} == {0}
    finally:
        os.umask(before)
