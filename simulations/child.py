"""Work in a fresh process: `python -m MODULE` reads a job on standard input, and answers in lines of JSON.

Each number is a count of steps done; the last line is the result.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

import msgspec

from psl_flower.errors import PslError, RunError
from psl_flower.launch.environment import environment
from psl_flower.launch.superlink import last_line

Outcome = TypeVar("Outcome")
Tell = Callable[[int], None]
_POLL_S, _END_S = 1.0, 20.0


class Child(Generic[Outcome]):
    """A process that does a job, in the environment of Flower's processes; a context manager, which ends it."""

    def __init__(self, module: str, job: msgspec.Struct, kind: type[Outcome], name: str) -> None:
        self._module, self._job, self._kind, self._name = module, job, kind, name
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []

    def __enter__(self) -> Self:
        """Start it."""
        self.began = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module], env=environment(), cwd=Path(__file__).parents[1], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self._process.pid
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._readers = [
            threading.Thread(target=_read, args=(self._process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=_read, args=(self._process.stderr, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError):  # its error output tells why
            self._process.stdin.write(msgspec.json.encode(self._job).decode())
            self._process.stdin.close()
        return self

    def __exit__(self, *raised: object) -> None:
        """Kill it if it has not ended."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(_END_S)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream
            stream.close()

    def answer(self, timeout_s: float = math.inf, meanwhile: Callable[[], None] = lambda: None) -> int | Outcome:
        """Return the next answer; `meanwhile` is called about once a second.

        Raises
        ------
        RunError
            If it fails, with its own last words, or is silent for too long.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if line := self._lines.get(timeout=_POLL_S):
                    return msgspec.json.decode(line, type=int | self._kind)
                self._readers[1].join(_END_S)
                raise RunError(f"{self._name} failed: {last_line(''.join(self._errors))}")
            meanwhile()
        raise RunError(f"{self._name} has not said anything for {timeout_s:g} s")

    def finish(self, show: Tell = lambda step: None, timeout_s: float = math.inf) -> Outcome:
        """Return the result of the work; `show` is called with the steps done. Raises RunError as `answer`."""
        while isinstance(said := self.answer(timeout_s), int):
            show(said)
        # Killed now, it might leave semaphores.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        return said


def serve(kind: Any, work: Callable[..., object]) -> None:
    """Do the job on standard input by `work(job, tell)`, and answer; what goes wrong is the last line of errors.

    `kind` is the job's type; `tell` takes the number of steps done.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(said: object) -> None:
        print(msgspec.json.encode(said).decode(), file=answers, flush=True)

    try:
        tell(work(msgspec.json.decode(sys.stdin.buffer.read(), type=kind), tell))
    except PslError as error:
        sys.exit(" ".join(str(error).split()))


def call(*arguments: str | Path, **environment: str) -> str:
    """Run a program to its end; return what it prints.

    Raises
    ------
    RunError
        If it fails, with its last words.
    """
    words = list(map(str, arguments))
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{' '.join(words[:3])}: {last_line(done.stdout + done.stderr)}")
    return done.stdout


def _read(stream: IO[str], put: Callable[[str], None]) -> None:
    """Hand over all lines of a stream, and an empty one at its end."""
    for line in stream:
        put(line)
    put("")
