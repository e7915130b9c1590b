"""A party whose clock is another one, set by its test at any moment; a program of its own.

    python other_clock.py ROLE FOLDER

Reads one JSON object a line, does what it says, and answers with one: {"time": its clock, "result" or "error"}. As "node" it
connects and serves steps; as "lower" it has the endpoint and exchanges steps; as "reader" it checks authorisations.
"""

from __future__ import annotations

import importlib.resources
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Jumps of the wall clock alone: a clock that is set does not move the monotonic one.
_SETTINGS = {"DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
_AT_ONCE, _WITHIN_A_SECOND = {"FAKETIME_NO_CACHE": "1"}, {"FAKETIME_CACHE_DURATION": "1"}


def environment(clock: Path, *, at_once: bool = True) -> dict[str, str]:
    """Return what gives a process, and those that it starts, the clock in a file, such as "+5h".

    It jumps `at_once`, for which each look at the clock reads the file, or within a second.
    """
    library = importlib.resources.files("libfaketime") / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    look = _AT_ONCE if at_once else _WITHIN_A_SECOND
    return {**_SETTINGS, **look, "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock)}


class Party:
    """Such a process, as its test sees it."""

    def __init__(self, role: str, folder: Path) -> None:
        import os

        folder.mkdir(exist_ok=True)
        self._clock = folder / "clock"
        self.set_clock("+0")
        self._process = subprocess.Popen(
            [sys.executable, __file__, role, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment(self._clock), "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    def set_clock(self, offset: str) -> None:
        """Let its clock jump."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.rename(self._clock)

    def tell(self, **request: Any) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; return its answer."""
        self.tell(**request)
        return self.answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def node(folder: Path) -> Callable[..., Any]:
    """Return what a node does on request."""
    import torch

    from psl_flower.wire.credentials import node_tls
    from psl_flower.wire.frames import Expectation
    from psl_flower.wire.messages import Hello, Smashed, Step
    from psl_flower.wire.plan import StepId
    from psl_flower.wire.stream import connect

    streams = []

    def do(what: str, **given: Any) -> Any:
        if what == "connect":
            hello = Hello("run", 7, given["upper"], (0,), 50, "data", bytes.fromhex(given["token"]))
            own = node_tls(**given["own"]) if given.get("own") else None
            streams.append(connect("127.0.0.1", given["port"], hello, cafile_pem=given["cert"], timeout_s=10, own=own))
        else:
            streams[-1].receive(Expectation(Step), timeout_s=20)
            streams[-1].send(Smashed(StepId(0, 0)), [torch.ones(2, 3)], timeout_s=20)

    return do


def lower(folder: Path) -> Callable[..., Any]:
    """Return what a Lower does on request."""
    from psl_flower.wire.credentials import endpoint_identity
    from psl_flower.wire.endpoint import ExchangeEndpoint
    from psl_flower.wire.frames import Expectation, Frame
    from psl_flower.wire.messages import Smashed, Step
    from psl_flower.wire.plan import StepId

    endpoints: list[ExchangeEndpoint] = []

    def do(what: str, **given: Any) -> Any:
        if what == "open":
            identity = endpoint_identity("127.0.0.1", **given["tls"])
            endpoints.append(ExchangeEndpoint("127.0.0.1", run="run", tls=identity))
            return {"port": endpoints[-1].port, "cert": endpoints[-1].cert_pem}
        upper = given["upper"]
        if what == "ticket":
            return endpoints[-1].issue_ticket(upper, 7, (0,), 50, "data").hex()
        endpoints[-1].wait_for([upper], timeout_s=10)
        expected = Expectation(Smashed, "float32", (2, 3), StepId(0, 0))
        endpoints[-1].exchange({upper: Frame(Step())}, {upper: expected}, timeout_s=20)
        return None

    return do


def reader(folder: Path) -> Callable[..., Any]:
    """Return what a node does with an authorisation before it reads anything."""
    from psl_flower.sealed import authorisation
    from psl_flower.sealed import manifest as manifests
    from psl_flower.sealed.identities import PublicIdentity

    def do(what: str, **given: Any) -> Any:
        signed = manifests.load(Path(given["sealed"]), PublicIdentity.parse(given["owner"]))
        return list(authorisation.check(bytes.fromhex(given["request"]), signed).images)

    return do


def main(role: str, folder: str) -> None:
    from psl_flower.errors import PslError

    do = {"node": node, "lower": lower, "reader": reader}[role](Path(folder))
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"time": time.time()}
        try:
            answer["result"] = do(**request)
        except PslError as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
