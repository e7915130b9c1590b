"""A SuperLink: whatever answers in its place at its start is one error; its last words say why a run ended."""

import shutil
import socket
import threading

import pytest

from psl_flower.errors import RunError
from psl_flower.launch.superlink import LocalSuperLink, ray_failure, telling


class Process:
    """Runs for a while, then has ended."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def poll(self) -> int | None:
        self._looks -= 1
        return None if self._looks >= 0 else 1


OTHERS = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
ANSWERS = [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"", b"HTTP/1.1 500 No\r\n\r\n", OTHERS]


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_stranger_on_the_port_is_one_error(answer):
    assert ANSWERS
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        stranger = threading.Thread(target=serve)
        stranger.start()
        link = LocalSuperLink()
        try:
            link._process = Process(1)
            link._health = f"http://127.0.0.1:{server.getsockname()[1]}/health"
            with pytest.raises(RunError, match="ended at its start"):
                link.wait()
        finally:
            stranger.join()
            link.home.rmdir()


NOISE = (
    "\x1b[92mINFO \x1b[0m:      Finished task 5039867259061610883 of run 8340978101408986867\n"
    '2026-11-22T10:38:06.022Z INFO [uvicorn.access] 127.0.0.1:36972 - "POST /v1/runtime/push-task-output HTTP/1.1" 200\n'
)


def test_last_words_are_not_those_of_the_access_log():
    link = LocalSuperLink()
    try:
        link.log.write_text(NOISE)
        assert link.last_words() == "it said nothing"
        link.log.write_text("\x1b[91mERROR \x1b[0m:     no space left\n" + NOISE)
        assert link.last_words() == "ERROR :     no space left"
        assert telling("MemoryError: INFO\n" + NOISE) == "MemoryError: INFO"
    finally:
        link.log.unlink()
        link.home.rmdir()


# As Ray 2.55 writes it, shortened.
RAYLET = (
    "[2026-11-22 10:37:20,938 I 20952 20952] (raylet) store_runner.cc:53: Starting object store with directory /tmp\n"
    "[2026-11-22 10:37:50,939 C 20952 20952] (raylet) node_manager.cc:3362:  An unexpected system state has occurred. "
    "Please report this issue. Check failed: statussetor3362.has_value() Timed out waiting for file metrics_agent_port_54d\n"
    "*** StackTrace Information ***\n/lib/libc.so.6(+0x2724a)\n"
)


def test_what_killed_ray_is_quoted_from_its_log():
    link = LocalSuperLink()
    try:
        logs = link.home / "ray" / "session_2026-11-22_10-37-12_163730_77" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text(RAYLET.splitlines()[0] + "\n")
        assert ray_failure(link.home) == ""
        (logs / "raylet.out").write_text(RAYLET)
        assert link.last_words().startswith("Ray failed: Timed out waiting for file metrics_agent_port_54d; ")
    finally:
        shutil.rmtree(link.home)
