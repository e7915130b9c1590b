"""Describes the conditions of a measurement: this machine, installed versions, the memory of processes."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import psutil

from psl_flower.system.machine import list_gpus, processor, usable_cores

_PACKAGES = ("psl-flower", "torch", "flwr", "ray", "numpy")


class Circumstances(TypedDict):
    """Fields of every `simulations.reports.Report`."""

    date: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]


def circumstances() -> Circumstances:
    """Return when and where something is measured; to be asked before it, for the load of the machine."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Circumstances(date=date, machine=_describe_machine(), versions=_versions())


def peak(pid: int | str = "self") -> int:
    """Return the high-water mark of a process's resident memory in bytes; 0 if it is not known."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") or 0


def anonymous(pid: int | str = "self") -> int:
    """Return a process's resident memory without mapped files, in bytes, now; 0 if it is not known."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "RssAnon:") or 0


def pss(pid: int | str = "self") -> int | None:
    """Return a process's proportional share of memory in bytes; None if it is not known."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _describe_machine() -> dict[str, str | int | float]:
    """Describe the machine: processor, cores, memory, system, and load."""
    gpus = list_gpus()
    return {
        "cpu": processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": len(gpus),
        "gpu": ", ".join(dict.fromkeys(gpus)),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _kilobytes(path: Path, key: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text("ascii", "replace").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None
