"""Memory of the processes of a federated run, measured from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import psutil

from simulations.machine import peak, pss

LOWER, UPPER, _REST = "Lower", "Upper", "Flower"
# Looking costs processor time that the run needs.
_EVERY_S = 5.0


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a process."""

    role: str  #: "one process", "Lower", "Upper", or "Flower" for all the rest together.
    peak_bytes: int  #: High-water mark of its resident memory (VmHWM), shared libraries included.
    #: Its proportional share of memory after the last step; None if the system does not tell.
    pss_bytes: int | None = None


class MemoryWatch:
    """Keeps the highest memory seen of every process.

    The kernel keeps a high-water mark for a process as long as it lives, so a few looks suffice, the last of them
    shortly before the end.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], Process] = {}
        self._looked_at = 0.0

    def look_now_and_then(self, processes: Callable[[], Sequence[Any]]) -> None:
        """Look at the processes that `processes` returns, if it is time to."""
        if time.monotonic() - self._looked_at >= _EVERY_S:
            self.poll(processes())

    def poll(self, processes: Sequence[Any], *, shares: bool = False) -> None:
        """Look at processes (psutil.Process); with `shares` also at their share of memory, which takes longer."""
        self._looked_at = time.monotonic()
        for process in processes:
            # It may end at any moment.
            with contextlib.suppress(psutil.Error):
                role, peak_bytes = role_of(process.cmdline()), peak(process.pid)
                if not peak_bytes:
                    continue
                key = (process.pid, process.create_time())
                before = self._seen.get(key)
                share = pss(process.pid) if shares else None
                if share is None and before is not None:
                    share = before.pss_bytes
                # A worker of Ray's gets its name when it becomes an actor: the last name counts.
                self._seen[key] = Process(role=role, peak_bytes=peak_bytes, pss_bytes=share)

    def processes(self) -> tuple[Process, ...]:
        """Return the Lower, the Uppers, and the rest as one."""
        seen = list(self._seen.values())
        rest = [process for process in seen if process.role == _REST]
        found = [process for role in (LOWER, UPPER) for process in seen if process.role == role]
        if rest:
            shares = [process.pss_bytes for process in rest if process.pss_bytes is not None]
            together = sum(process.peak_bytes for process in rest)
            found.append(Process(role=_REST, peak_bytes=together, pss_bytes=sum(shares) if shares else None))
        return tuple(found)


def highest(found: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    """Return the highest memory by role; unknown ones are left out."""
    peaks: dict[str, int] = {}
    for role, num_bytes in found:
        if num_bytes is not None:
            peaks[role] = max(peaks.get(role, 0), num_bytes)
    return peaks


def role_of(command: Sequence[str]) -> str:
    """Return a process's role by its command line: Flower's simulation runs the ServerApp, Ray's actors the Uppers."""
    words = " ".join(command[:2])
    if words.startswith("ray::ClientAppActor"):
        return UPPER
    return LOWER if "flwr-simulation" in words else _REST
