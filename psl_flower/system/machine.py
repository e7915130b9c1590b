"""Cores, GPUs, memory and packages of this machine, without loading torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

from psl_flower.errors import ConfigError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER, _PAD_BYTES = 2**31 - 1, 64 * 2**20


class Clock:
    """Notices when the machine's clock is set, or the machine has slept, after this was made."""

    def __init__(self) -> None:
        self._offset_s = self._offset()

    def ahead_s(self) -> float:
        """Return the seconds by which the clock is ahead of elapsed time; below 0 if it was set back."""
        return self._offset() - self._offset_s

    @staticmethod
    def _offset() -> float:
        return time.time() - time.monotonic()


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensor; does nothing without glibc.

    A training step allocates and frees the same tensors every time. By default glibc gives large ones back to the
    system, which then maps and clears every page again: 5 to 10 % of a step where page faults are slow, as in virtual
    machines.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    # A thread's own arena would still give memory back, in whole heaps.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TOP_PAD, _PAD_BYTES)


def forbid_core_dumps() -> None:
    """Keep this process's memory, keys included, out of core files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name; empty if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs, without loading torch."""
    return len(list_gpus())


@functools.cache
def list_gpus() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs, without loading torch; they are looked for once, since that takes long."""
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        # As the user's own PATH has it.
        listed = subprocess.run(  # nosec B607
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    # GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-...)
    found = re.findall(r"^GPU \d+: (.*?) \(UUID", listed.stdout, re.MULTILINE)
    return tuple(found) if listed.returncode == 0 else ()


def require_packages(purpose: str, extra: str, *packages: str) -> None:
    """Raise ConfigError, naming the extra that installs them, unless all packages for a purpose are installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{purpose} needs {error.name}, which is not installed: pip install 'psl-flower[{extra}]'"
            ) from error
