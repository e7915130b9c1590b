"""A ClientApp's process says that it lives before it has loaded Flower."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from psl_flower.flower import first_word


class SuperNode(BaseHTTPRequestHandler):
    """Notes what it hears, and answers with the next status."""

    heard: ClassVar[list[tuple[str, str | None, str | None]]] = []
    statuses: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        self.heard.append((self.path, self.headers[TASK_TOKEN_HEADER], self.headers["content-type"]))
        self.send_response(self.statuses.pop(0))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(SuperNode, "heard", [])
    monkeypatch.setattr(first_word, "_EVERY_S", 1.0)
    server = HTTPServer(("127.0.0.1", 0), SuperNode)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_it_is_said_until_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SuperNode, "statuses", [200, 200, 401])
    thread = first_word.speak(["-c", "--runtime-api-address", address, "--token", "t", "--insecure"])
    assert thread is not None
    thread.join(60)
    assert SuperNode.heard == [("/v1/runtime/send-task-heartbeat", "t", PROTOBUF_MEDIA_TYPE)] * 3


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--runtime-api-address", "127.0.0.1:1", "--token", "t", "--root-certificates", "ca.crt"]],
)
def test_without_an_address_or_over_tls_nothing_is_said(arguments: list[str]) -> None:
    assert first_word.speak(arguments) is None


def test_a_supernode_that_is_gone_is_no_error() -> None:
    thread = first_word.speak(["--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure"])
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


def test_it_loads_no_flower() -> None:
    code = "import psl_flower.flower.first_word, sys; assert not {'flwr', 'torch', 'numpy', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=300, check=True)
