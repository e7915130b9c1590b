"""Which device a party computes on, with how many threads and in which precision."""

from __future__ import annotations

import contextlib

import torch

from psl_flower.errors import ConfigError


def choose_device(setting: str) -> torch.device:
    """Return the device of a setting "auto", "cpu", "cuda" or "cuda:N"; "auto" takes a GPU where there is one.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {setting} was asked for, but this machine has {torch.cuda.device_count()} GPUs")
    return device


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a forward pass runs: bfloat16 autocast, or none."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


def compute_dtype(autocast_enabled: bool) -> torch.dtype:
    """Return the dtype of smashed data where they are computed."""
    return torch.bfloat16 if autocast_enabled else torch.float32
