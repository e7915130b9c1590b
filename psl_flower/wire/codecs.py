"""Encodes one tensor as bytes and decodes it: float32, bfloat16, float16, int8, and codes of few bits.

A codec knows the exact number of bytes of a shape before anything is allocated, so a receiver can refuse a
frame by its metadata alone. All bytes are little-endian. Smashed data travels channels last, (B, K, h', w',
C), C the channels.

| codec    | bytes                              | error                                                   |
|----------|------------------------------------|---------------------------------------------------------|
| float32  | 4 N                                | none                                                    |
| bfloat16 | 2 N                                | 2^-8 relative                                           |
| float16  | 2 N                                | 2^-11 relative; above 65,504 infinite, below 2^-25 zero |
| int8     | C float32 scales, then N integers  | amax / 254 of each channel                              |
| codeL    | ceil(N b / 8), b = ceil(log2 L)    | none for codes of L levels (2 to 256), evenly in -1..1  |
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from psl_flower.errors import ConfigError, FrameMismatch, TrainingError

if sys.byteorder != "little":  # torch views the wire's bytes in place
    raise ImportError("psl_flower.wire needs a little-endian machine")

Bytes = bytes | bytearray | memoryview

# float64 is left out on purpose: no codec carries it, and narrowing it silently would hide an inexact
# exchange.
_SOURCES = (torch.float32, torch.bfloat16, torch.float16)
_INT8_MAX = 127
_BLOCK_ELEMENTS = 2**15
MAX_LEVELS = 256


class Codec(Protocol):
    """The interface of every codec.

    The two promises are about values that this codec has decoded, as float32, and that it encodes again. Exactness
    depends on them: if one is not kept, such values cross the wire, or are stored, in float32 instead.
    """

    #: Whether they decode to the same values after they were joined with those of other tensors, and with zeros, along
    #: any axis. A scale that belongs to a whole tensor or to a channel rules that out.
    keeps_values_when_joined: ClassVar[bool]
    #: Whether some samples (first axis) of a tensor decode to the same values when encoded without the others.
    keeps_values_by_sample: ClassVar[bool]

    @property
    def name(self) -> str:
        """Name on the wire and in the configuration."""

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the exact number of bytes on the wire of a tensor of `shape`."""

    def encode(self, tensor: Tensor) -> list[memoryview]:
        """Return the bytes of `tensor`, in order, as buffers to be sent one after the other.

        Parameters
        ----------
        tensor : Tensor
            float32, bfloat16 or float16, any shape, any device. The buffers may share its memory: leave it
            unchanged until they are sent. A tensor that is not contiguous is copied.

        Raises
        ------
        FrameMismatch
            Another dtype.
        TrainingError
            The tensor holds a value that is not finite, and the codec cannot carry it.
        """

    def decode(self, buffer: Bytes, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the CPU tensor that `buffer` holds, contiguous and writable.

        Parameters
        ----------
        buffer : bytes, bytearray or memoryview
            Exactly ``nbytes(shape)`` bytes. A writable one is viewed, not copied, where `dtype` is the wire's
            own.
        shape : sequence of int
            Shape of the tensor.
        dtype : torch.dtype
            Floating dtype of the result.

        Raises
        ------
        FrameMismatch
            The buffer's length is not that of the shape, or its content is nothing that `encode` returns.
        """

    def roundtrip(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as the other side decodes it, in float32 and on the same device."""


@dataclass(frozen=True, slots=True)
class FloatCodec:
    """A floating dtype as it is; non-finite values survive."""

    keeps_values_when_joined: ClassVar[bool] = True
    keeps_values_by_sample: ClassVar[bool] = True

    name: str
    wire_dtype: torch.dtype

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the exact number of bytes on the wire."""
        return math.prod(shape) * self.wire_dtype.itemsize

    def encode(self, tensor: Tensor) -> list[memoryview]:
        """Return one buffer; it is the tensor's own memory where dtype and layout already fit."""
        return [_bytes_of(_checked(tensor).to(self.wire_dtype))]

    def decode(self, buffer: Bytes, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the tensor; a view of `buffer` if that is writable and `dtype` is the wire's own."""
        _check_length(self, buffer, shape)
        return _view(buffer, self.wire_dtype).view(tuple(shape)).to(dtype)

    def roundtrip(self, tensor: Tensor) -> Tensor:
        """Return `tensor` rounded to the wire's dtype; `tensor` itself (detached) for float32."""
        return _checked(tensor).to(self.wire_dtype).to(torch.float32)


@dataclass(frozen=True, slots=True)
class Int8Codec:
    """Symmetric 8-bit integers with one float32 scale, amax / 127, for each channel of the last axis."""

    keeps_values_when_joined: ClassVar[bool] = False  # The scales are those of one Upper's batch.
    keeps_values_by_sample: ClassVar[bool] = False

    name: str = "int8"

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the exact number of bytes on the wire: 4 for each channel and 1 for each element."""
        return 4 * _num_channels(shape) + math.prod(shape)

    def encode(self, tensor: Tensor) -> list[memoryview]:
        """Return two buffers: scales (C,) float32, then the integers."""
        return [_bytes_of(part) for part in self._quantise(tensor)]

    def decode(self, buffer: Bytes, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return integer times scale, computed in float32."""
        _check_length(self, buffer, shape)
        split = 4 * _num_channels(shape)
        whole = memoryview(buffer)
        scale_C = _view(whole[:split], torch.float32)
        if not bool((torch.isfinite(scale_C) & (scale_C >= 0)).all()):
            raise FrameMismatch("int8 tensor: a channel's scale is negative or not finite")
        integers = _view(whole[split:], torch.int8).view(tuple(shape))
        return self._dequantise(scale_C, integers).to(dtype)

    def roundtrip(self, tensor: Tensor) -> Tensor:
        """Return the quantised tensor, scaled back."""
        return self._dequantise(*self._quantise(tensor))

    def _quantise(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        tensor = _checked(tensor)
        num_channels = _num_channels(tensor.shape)
        integers = torch.empty(tensor.shape, dtype=torch.int8, device=tensor.device)
        if not tensor.numel():
            return tensor.new_zeros(num_channels, dtype=torch.float32), integers
        rows_NC = tensor.reshape(-1, num_channels)
        # On a CPU twenty times as fast as torch.aminmax, with no |x| of the tensor's size. NaN propagates.
        scale_C = torch.maximum(rows_NC.amax(0), -rows_NC.amin(0)).to(torch.float32) / _INT8_MAX
        if not bool(torch.isfinite(scale_C).all()):
            raise TrainingError(
                "a tensor to be sent holds a value that is not finite, which int8 cannot carry: lower the "
                "learning rate, or choose the bfloat16 codec to see where it comes from"
            )
        # A channel of zeros (or one so small that its scale underflows) has scale 0 and becomes zeros.
        divisor_C = torch.where(scale_C > 0, scale_C, torch.ones_like(scale_C))
        # In blocks that stay in the cache: page faults of a fresh large tensor cost more than the arithmetic.
        block = max(1, _BLOCK_ELEMENTS // num_channels) if tensor.is_cpu else len(rows_NC)
        integers_NC = integers.view(rows_NC.shape)
        for start in range(0, len(rows_NC), block):
            quotient_NC = rows_NC[start : start + block] / divisor_C
            integers_NC[start : start + block] = quotient_NC.round_().clamp_(-_INT8_MAX, _INT8_MAX)
        return scale_C, integers

    @staticmethod
    def _dequantise(scale_C: Tensor, integers: Tensor) -> Tensor:
        values = integers.to(torch.float32)  # then in place: seven times as fast as a product of mixed dtypes
        return values.mul_(scale_C if values.dim() else scale_C[0])


@dataclass(frozen=True, slots=True)
class CodeCodec:
    """Codes: numbers with `levels` values, evenly spaced from -1 to 1, each packed in the fewest whole bits.

    Level k in 0..levels-1 stands for the number 2k / (levels - 1) - 1. Bits follow each other over the bytes, the
    highest first; those left over in the last byte are 0.
    """

    keeps_values_when_joined: ClassVar[bool] = False  # Zeros stand for an absent Upper, and no level for them.
    keeps_values_by_sample: ClassVar[bool] = True

    levels: int  #: 2 to 256.

    @property
    def name(self) -> str:
        """Name on the wire."""
        return f"code{self.levels}"

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return (self.levels - 1).bit_length()

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the exact number of bytes on the wire."""
        return -(-math.prod(shape) * self.bits // 8)

    def encode(self, tensor: Tensor) -> list[memoryview]:
        """Return one buffer; a number between two levels becomes the nearer one, beyond -1 or 1 the last."""
        levels_N = to_levels(_checked(tensor), self.levels).cpu().contiguous().reshape(-1, 1).numpy()
        bits_Nb = np.unpackbits(levels_N, axis=1)[:, 8 - self.bits :]
        return [np.packbits(bits_Nb).data]

    def decode(self, buffer: Bytes, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the numbers that the levels stand for."""
        _check_length(self, buffer, shape)
        size = math.prod(shape)
        bits = np.unpackbits(np.frombuffer(buffer, dtype=np.uint8))
        levels_N = np.packbits(np.pad(bits[: size * self.bits].reshape(size, self.bits), ((0, 0), (8 - self.bits, 0))))
        if bits[size * self.bits :].any() or (size and levels_N.max() >= self.levels):
            raise FrameMismatch(f"{self.name} tensor: bits that stand for none of {self.levels} levels")
        return from_levels(torch.from_numpy(levels_N).reshape(tuple(shape)), self.levels).to(dtype)

    def roundtrip(self, tensor: Tensor) -> Tensor:
        """Return the nearest codes."""
        return from_levels(to_levels(_checked(tensor), self.levels), self.levels)


def to_levels(values: Tensor, levels: int) -> Tensor:
    """Return the nearest level, uint8 0..levels-1, of numbers in -1..1.

    Raises
    ------
    TrainingError
        If a number is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise TrainingError("a code to be sent holds a value that is not finite: lower the learning rate")
    return _nearest(values, levels).to(torch.uint8)


def rounded_to_levels(values: Tensor, levels: int) -> Tensor:
    """Return the nearest numbers, float32, that levels stand for; NaN stays NaN, so that the loss shows it."""
    return from_levels(_nearest(values, levels), levels)


def from_levels(level: Tensor, levels: int) -> Tensor:
    """Return the numbers in -1..1, float32, that levels stand for."""
    return level.to(torch.float32).mul(2 / (levels - 1)).sub(1)


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        FloatCodec("float32", torch.float32),
        FloatCodec("bfloat16", torch.bfloat16),
        FloatCodec("float16", torch.float16),
        Int8Codec(),
    )
}


def get_codec(name: str) -> Codec:
    """Return the codec called `name`: one of `CODECS`, or "code2" to "code256".

    Raises
    ------
    ConfigError
        There is no such codec.
    """
    if name in CODECS:
        return CODECS[name]
    found = re.fullmatch(r"code([1-9][0-9]{0,2})", name)
    if found and 2 <= int(found[1]) <= MAX_LEVELS:
        return CodeCodec(int(found[1]))
    raise ConfigError(f"wire codec: expected one of {', '.join(CODECS)}, code2 to code{MAX_LEVELS}, got {name!r}")


def wire_roundtrip(tensor: Tensor, codec: str) -> Tensor:
    """Return `tensor` as the other side decodes it, in float32 on the same device; for one-process runs.

    Bit-equal to ``decode(encode(tensor))``. For float32 it is `tensor` itself, detached. Raises ConfigError,
    FrameMismatch and TrainingError as `get_codec` and `Codec.encode`.
    """
    return get_codec(codec).roundtrip(tensor)


def _nearest(values: Tensor, levels: int) -> Tensor:
    return values.to(torch.float32).clamp(-1, 1).add(1).mul((levels - 1) / 2).round()


def _num_channels(shape: Sequence[int]) -> int:
    return shape[-1] if len(shape) else 1


def _checked(tensor: Tensor) -> Tensor:
    if tensor.dtype not in _SOURCES:
        raise FrameMismatch(f"tensor to be sent: expected float32, bfloat16 or float16, got {tensor.dtype}")
    return tensor.detach()


def _check_length(codec: Codec, buffer: Bytes, shape: Sequence[int]) -> None:
    expected, received = codec.nbytes(shape), memoryview(buffer).nbytes
    if received != expected:
        raise FrameMismatch(f"{codec.name} tensor {tuple(shape)}: expected {expected} bytes, received {received}")


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _view(buffer: Bytes, dtype: torch.dtype) -> Tensor:
    """Return `buffer` as a flat tensor, copied only where torch could not use it in place."""
    raw = np.frombuffer(buffer, dtype=np.uint8)
    if not raw.size:
        return torch.empty(0, dtype=dtype)  # numpy gives an empty array strides that torch cannot view
    if not raw.flags.writeable or raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    return torch.from_numpy(raw).view(dtype)
