"""Checks this machine for `psl doctor`: the folder for states, disk space, memory, the device."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rich.filesize import decimal

from psl_flower.system.findings import Finding, failed, ok, warning
from psl_flower.system.machine import usable_cores

# Seen with ResNet18 and batches of 32: a node's programs take 0.9 GB, the server's 1.5 GB; checkpoints some 100 MB.
_MEMORY_FAILED, _MEMORY_WARNING = 0.8e9, 1.8e9
_DISK_FAILED, _DISK_WARNING = 0.2e9, 2e9


def check_folder(what: str, folder: Path) -> list[Finding]:
    """Return findings about a folder that a run writes to: writable, and enough space on its disk."""
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"psl doctor")
            os.fsync(file.fileno())
    except OSError as error:
        do = f"let this user write there (chown), or name another folder; space: df -h {place}"
        return [failed(what, f"{folder}: cannot be written: {error.strerror or error}", do)]
    free = shutil.disk_usage(place).free
    state = "writable" if place == folder else "does not exist; the first run makes it"
    said = f"{folder}: {state}, {decimal(free)} free"
    if free < _DISK_FAILED:
        return [failed(what, said, "free some space, or name a folder on another disk")]
    if free < _DISK_WARNING:
        return [warning(what, said, "free some space, or name a folder on another disk")]
    if place != folder:
        # A mistyped name looks the same, and a node would begin without its weights.
        return [warning(what, said, f"check the spelling if there was a run already; or make it: mkdir -p {folder}")]
    return [ok(what, said)]


def check_memory() -> list[Finding]:
    """Return a finding about the memory that is free."""
    import psutil

    available = psutil.virtual_memory().available
    said = f"{decimal(available)} available, {usable_cores()} cores"
    if available < _MEMORY_FAILED:
        do = "end other programs: a node takes about 0.9 GB, the server 1.5 GB, and more with large batches"
        return [failed("memory", said, do)]
    if available < _MEMORY_WARNING:
        return [warning("memory", said, "expect to need a small batch-size")]
    return [ok("memory", said)]


def check_device(setting: str) -> list[Finding]:
    """Return a finding about the device of the setting `device` ("auto", "cpu", "cuda", "cuda:N")."""
    import torch

    from psl_flower.errors import ConfigError
    from psl_flower.system.devices import choose_device

    try:
        device = choose_device(setting)
        if device.type != "cuda":
            return [ok("device", f"{device}: {setting} was asked for")]
        torch.ones(1, device=device)
    except (ConfigError, RuntimeError) as error:
        do = "check nvidia-smi and that torch was installed for it; or set device to cpu"
        return [failed("device", " ".join(str(error).split())[:300], do)]
    free, total = torch.cuda.mem_get_info(device)
    return [ok("device", f"{device}: {torch.cuda.get_device_name(device)}, {decimal(free)} of {decimal(total)} free")]
