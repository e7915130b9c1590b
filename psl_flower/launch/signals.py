"""Signals that ask this program to end; none may leave Flower's processes behind, which run in a separate session."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: as Ctrl-C, but its sender kills us after a short wait."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Terminated` meanwhile, in the main thread; ignored signals (nohup) stay ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        raise Terminated(number)

    ignored = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_IGN]
    with _handled([number for number in _ENDING if number not in ignored], end):
        yield


@contextlib.contextmanager
def ignoring() -> Iterator[None]:
    """Ignore Ctrl-C and these signals meanwhile: for cleaning up, which ends by itself."""
    with _handled([signal.SIGINT, *_ENDING], signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled(numbers: list[signal.Signals], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _leave_terminal() -> None:
    """Write no more to a terminal that has gone, or every line from now on would be an error."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        with contextlib.suppress(OSError, ValueError):
            descriptor = stream.fileno()
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
