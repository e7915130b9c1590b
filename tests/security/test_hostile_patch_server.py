"""A web server with a node's store that sends without end: the node takes no more than it asked for."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from psl_flower.errors import StoreUnreachable
from psl_flower.sealed.url_folder import UrlFolder

_SIZE = 100


class _Endless(http.server.BaseHTTPRequestHandler):
    """Calls every file small, and sends each without end."""

    protocol_version = "HTTP/1.1"
    sent = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(_SIZE))
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        try:
            while type(self).sent < 1 << 28:
                self.wfile.write(bytes(1 << 20))
                type(self).sent += 1 << 20
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_address[1]}/store"
        finally:
            web.shutdown()
            thread.join()


@pytest.mark.parametrize("what", ["whole file", "parts of a file", "listing"])
def test_an_answer_without_end(what: str) -> None:
    class Handler(_Endless):
        sent = 0

    with serving(Handler) as url:
        folder = UrlFolder(url)
        if what == "listing":
            assert folder.list() == []
        else:
            with pytest.raises(StoreUnreachable, match="the server sends more than was asked for"):
                if what == "whole file":
                    folder.read("manifest.psl", 1 << 20)
                else:
                    folder.ranges("epoch-0001-segment-000000.psl", [0, 50], 50)
    # What lay in the buffers of the system and of aiohttp, not 256 MB.
    assert 0 < Handler.sent < 1 << 26


class _Dripping(http.server.BaseHTTPRequestHandler):
    """Sends a byte now and then, of its headers or of a file."""

    in_headers = False

    def do_GET(self) -> None:
        try:
            self.send_response(206)
            if self.in_headers:
                self.flush_headers()
                self._drip(b"X-Slow: " + b"x" * 1000)
            self.send_header("Content-Length", str(_SIZE))
            self.end_headers()
            self._drip(bytes(_SIZE))
        except OSError:
            self.close_connection = True

    do_HEAD = _Endless.do_HEAD
    log_message = _Endless.log_message

    def _drip(self, content: bytes) -> None:
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)


@pytest.mark.parametrize("in_headers", [False, True])
def test_a_server_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, in_headers: bool) -> None:
    """No single silence is long, so that only the whole of it can be judged."""
    monkeypatch.setattr("psl_flower.sealed.url_folder._SILENT_S", 0.5)
    handler = type("Handler", (_Dripping,), {"in_headers": in_headers})
    began = time.monotonic()
    with serving(handler) as url, pytest.raises(StoreUnreachable, match="no answer in time"):
        UrlFolder(url).ranges("epoch-0001-segment-000000.psl", [0], _SIZE)
    # Dripping in peace takes at least 10 s more than the system needs to notice; fsspec may try again once or twice.
    assert time.monotonic() - began < 9
