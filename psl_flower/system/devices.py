"""Chooses the device that a party computes on, its number of threads and its precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from psl_flower.errors import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def choose_device(setting: str) -> torch.device:
    """Return the device of a setting "auto", "cpu", "cuda" or "cuda:N"; "auto" takes a GPU where there is one.

    Raises
    ------
    ConfigError
        If a GPU is asked for and this machine has none.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device: {setting} was asked for, but this machine has {count or 'no'} GPU{'s' * (count > 1)} that torch "
            "can use; leave device out, or set device=cpu"
        )
    return device


def to_device(
    module: ModuleT, device: torch.device | str, memory_format: torch.memory_format = torch.channels_last
) -> ModuleT:
    """Move a module to a device, in place, its 4-dimensional weights in a memory order; return it."""
    move: Any = module.to  # torch's own annotations lack the memory order
    move(device, memory_format=memory_format)
    return module


@contextlib.contextmanager
def torch_threads(number: int = 0) -> Iterator[None]:
    """Let torch compute with this number of threads within, 0: as many as before; put the number of before back."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a forward pass runs: bfloat16 autocast, or none."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


def compute_dtype(autocast_enabled: bool) -> torch.dtype:
    """Return the dtype of smashed data where they are computed."""
    return torch.bfloat16 if autocast_enabled else torch.float32
