"""A hostile web server with a node's store: it sends without end, drips, sends costly pages, and leads elsewhere."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
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
            with pytest.raises(StoreUnreachable, match="its listing of the folder is longer than 1048576 bytes"):
                folder.list()
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


def _answering(
    answer: Callable[[http.server.BaseHTTPRequestHandler], None],
) -> type[http.server.BaseHTTPRequestHandler]:
    """Return a handler that answers every request so."""
    members = {"do_GET": answer, "do_HEAD": answer, "log_message": _Endless.log_message, "protocol_version": "HTTP/1.1"}
    return type("Handler", (http.server.BaseHTTPRequestHandler,), members)


def test_continue_without_end_is_given_up_at_the_first_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psl_flower.sealed.url_folder._SILENT_S", 1.0)
    asked = []

    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(self.command)
        try:
            while True:
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
                time.sleep(0.01)
        except OSError:
            self.close_connection = True

    with serving(_answering(answer)) as url, pytest.raises(StoreUnreachable, match="no answer in time"):
        UrlFolder(url).ranges("epoch-0001-segment-000000.psl", [0], _SIZE)
    assert asked == ["GET"]


@pytest.mark.parametrize("reading", ["part of a file", "whole file", "size", "listing"])
@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/internal/admin?delete=1", "file:///etc/passwd", "//[::1]/"]
)
def test_a_redirect_to_another_server_is_not_followed(reading: str, target: str) -> None:
    inner: list[str] = []

    def internal(self: http.server.BaseHTTPRequestHandler) -> None:
        inner.append(self.path)
        self.send_error(404)

    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    with serving(_answering(internal)) as other, serving(_answering(answer)) as url:
        target = target.format(port=other.split(":")[2].removesuffix("/store"))
        folder = UrlFolder(url)
        shown = re.escape(target.split("?")[0])
        with pytest.raises(
            StoreUnreachable, match=f"{url}.*: the server redirects to another one, {shown}, which is not"
        ):
            if reading == "listing":
                folder.list()
            elif reading == "size":
                folder.size("manifest.psl")
            elif reading == "whole file":
                folder.read("manifest.psl", 1 << 20)
            else:
                folder.ranges("epoch-0001-segment-000000.psl", [0], _SIZE)
    assert inner == []


def test_a_redirect_within_the_server_is_followed() -> None:
    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        moved = not self.path.startswith("/moved")
        self.send_response(302 if moved else 206)
        if moved:
            self.send_header("Location", f"/moved{self.path}")
        self.send_header("Content-Length", "0" if moved else "4")
        self.end_headers()
        if not moved:
            self.wfile.write(b"here")

    with serving(_answering(answer)) as url:
        assert UrlFolder(url).ranges("epoch-0001-segment-000000.psl", [0], 4) == [b"here"]


@pytest.mark.parametrize(
    "page",
    ["<a" + " " * 1_000_000, "<a " * 300_000, "<a href=" * 100_000, "<a href " + "href=' " * 140_000, "<!--" * 250_000],
    ids=lambda page: page[:10],
)
def test_a_costly_listing_takes_no_time(page: str) -> None:
    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        content = page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    with serving(_answering(answer)) as url:
        began = time.process_time()
        UrlFolder(url).list()
        # fsspec's own reading takes 29 s for 2,000 blanks.
        assert time.process_time() - began < 10
