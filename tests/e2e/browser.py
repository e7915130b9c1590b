"""A headless Chromium, as far as a test of a page needs one: opens a file, measures, and tells what went wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
# From npm, @sparticuz/chromium will do.
CHROMIUM = os.environ.get("PSL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
_FLAGS = (
    "--headless=shell", "--no-sandbox", "--no-zygote", "--single-process", "--in-process-gpu", "--use-gl=angle",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-port=0",
)  # fmt: skip
_TIMEOUT_S = 120


class Browser:
    """Speaks Chrome's DevTools protocol over its socket; use as a context manager."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        self._process = subprocess.Popen(
            [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        address = next(filter(None, (re.search(r"ws://\S+", line) for line in self._process.stderr)))[0]
        self._socket = connect(address, max_size=None, open_timeout=_TIMEOUT_S)
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = ""

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def open(self, page: Path, width: int) -> None:
        """Open a file at a width, as a telephone does below 500 pixels, and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def at_both_widths(self, page: Path, measure: str) -> Iterator[tuple[int, Any]]:
        """Open a page at a desktop's and a telephone's width; yield the width and the value of a JavaScript expression.

        Asserts that nothing is wider than the page, and that the page logs, throws and fetches nothing.
        """
        for width in (1280, 390):
            self.open(page, width)
            assert self.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            assert self.trouble(page) == []
            yield width, self.evaluate(measure)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def trouble(self, page: Path) -> list[Any]:
        """Return the page's log entries, exceptions and requests for other URLs since it was opened."""
        events = self._events("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        urls = [request["request"]["url"] for request in self._events("Network.requestWillBeSent")]
        assert page.as_uri() in urls
        return events + [url for url in urls if url != page.as_uri() and not url.startswith("data:")]

    def _events(self, *methods: str) -> list[Any]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=_TIMEOUT_S))
        if "method" in message:
            self.events.append(message)
        return message
