"""A second device for machines that have none: tensors there cannot meet those of the CPU, as on a GPU.

Its tensors compute with the CPU's own kernels, so results are bit for bit the CPU's; what the CPU would let pass and a GPU
would not (an operation on tensors of two devices, a tensor of the device handed to NumPy) is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_NAME = "elsewhere"
_copy = torch.ops.aten.copy_.default
_INDEXED = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
_COPIES = (torch.ops.aten._to_copy.default, _copy)


class _Elsewhere(torch.Tensor):
    """A tensor that says it is on the device; `held` has its values, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _Elsewhere:
        made: _Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(_NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"{self.held!r} {_NAME}"

    # With these two `nn.Module.to` exchanges the parameters themselves, not their storages.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> _Elsewhere:
        return _Elsewhere(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Takes what makes tensors on the device from none there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Brings to the device what torch makes there from Python's numbers, below the reach of dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor:
            device = kwargs.pop("device", "cpu")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if func in _INDEXED and isinstance(args[0], _Elsewhere) and isinstance(args[1], tuple):
            args = (args[0], tuple(_index(part, args[0].device) for part in args[1]), *args[2:])
        return func(*args, **kwargs)


def _index(part: Any, device: torch.device) -> Any:
    return torch.tensor(list(part)).to(device) if isinstance(part, Sequence) else part


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute on the CPU, and say where the result is."""
    flat = pytree.tree_leaves((args, kwargs))
    there = [value for value in flat if isinstance(value, _Elsewhere)]
    here = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, _Elsewhere)]
    # A single number may come from the CPU, as with a GPU.
    if there and func not in _COPIES and any(tensor.dim() for tensor in here):
        raise RuntimeError(f"{func}: tensors on two devices")
    held = func(*pytree.tree_map(_held, args), **pytree.tree_map(_held, kwargs))
    device = kwargs.get("device")
    if func is _copy:
        stays = isinstance(args[0], _Elsewhere)
    else:
        stays = bool(there) if device is None else torch.device(device).type == _NAME
    if not stays:
        return held
    # What is changed in place is what was given.
    given = {id(tensor.held): tensor for tensor in there}

    def result(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return given[id(value)] if id(value) in given else _Elsewhere(value)

    return pytree.tree_map(result, held)


def _held(value: Any) -> Any:
    if isinstance(value, _Elsewhere):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == _NAME else value


def register() -> None:
    """Tell torch of the device, for as long as the process lives; before anything is differentiated there."""
    _setup_privateuseone_for_python_backend(_NAME)


@contextlib.contextmanager
def present() -> Iterator[torch.device]:
    """Within, the registered device can be used."""
    with _Made(), _Dispatch():
        yield torch.device(_NAME, 0)
