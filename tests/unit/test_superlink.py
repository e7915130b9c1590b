"""The start of a SuperLink: whatever answers in its place is one error."""

import socket
import threading

import pytest

from psl_flower.errors import RunError
from psl_flower.launch.superlink import LocalSuperLink


class Process:
    """Runs for a while, then has ended."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def poll(self) -> int | None:
        self._looks -= 1
        return None if self._looks >= 0 else 1


ANSWERS = [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"", b"HTTP/1.1 500 No\r\n\r\n"]


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
