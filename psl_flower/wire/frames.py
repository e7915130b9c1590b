"""Frames: a fixed header, bounded metadata, then the raw bytes of at most one tensor. Never pickle.

    header    20 bytes   magic "PSLF", version u32, metadata bytes u32, payload bytes u64, all little-endian
    metadata             MessagePack of `FrameMetadata`: the message, codec and shape of each tensor
    payload              the tensor as its codec lays it out; its length follows from codec and shape alone

A receiver reads the header and checks it (`parse_header`), reads the metadata and checks it against the
limits and against what it expects at this moment (`parse_metadata`), and only then allocates the payload,
exactly (`parse_payload`). `encode_frame` and `decode_frame` do the same for a frame that travels whole, as
bytes in a Flower message.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from psl_flower.errors import FrameMismatch, FrameTooLarge, FrameVersionError, ProtocolError, WireError
from psl_flower.text import printable
from psl_flower.wire.codecs import Bytes, get_codec
from psl_flower.wire.messages import MAX_TEXT, Abort, Failed, Message
from psl_flower.wire.plan import Record, StepId

MAGIC = b"PSLF"
VERSION = 1
_HEADER = struct.Struct("<4sIIQ")
HEADER_BYTES = _HEADER.size

# Zero-sized dimensions count as one here: torch computes strides even of an empty tensor, and they must not
# overflow.
MAX_ELEMENTS = 2**40

# Bytes. A tensor that is received begins at a multiple of it, as those that torch allocates.
ALIGNMENT = 64
MAX_RANK = 6
MAX_DIM = 2**32 - 1
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_DIM)], ...], Meta(max_length=MAX_RANK)]


class TensorSpec(Record, frozen=True):
    """The declared codec name and shape of one tensor in the payload."""

    codec: Annotated[str, Meta(max_length=32)]
    shape: Shape


class FrameMetadata(Record, frozen=True):
    """A frame's metadata: the message and the tensors that follow it, in order."""

    message: Message
    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=1)] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FrameMetadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Most bytes a peer may declare: of metadata, and of a payload."""

    metadata_bytes: int = 4 * 2**20
    payload_bytes: int = 2**30


@dataclass(frozen=True, slots=True)
class Frame:
    """A message and its tensors (none or one), to be sent or as received."""

    message: Message  #: One of `psl_flower.wire.messages`.
    #: Tensors, `message.num_tensors` of them. To be sent: float32, bfloat16 or float16. Received: CPU, contiguous,
    #: writable, in the dtype of the `Expectation`.
    tensors: tuple[Tensor, ...] = ()
    codec: str = "float32"  #: Codec of the tensors on the wire.

    @property
    def tensor(self) -> Tensor:
        """The frame's one tensor.

        Raises
        ------
        ProtocolError
            The frame carries none.
        """
        if not self.tensors:
            raise ProtocolError(f"{type(self.message).__name__} frame: expected a tensor, received none")
        return self.tensors[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole frame on the wire."""
        return frame_nbytes(self.message, [tuple(t.shape) for t in self.tensors], self.codec)

    def __repr__(self) -> str:
        """Return a form without tensor values."""
        shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
        return f"Frame({self.message!r}, [{shapes}], {self.codec})"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What may be received at this moment; anything else is refused before its payload is allocated."""

    #: The message types, all of one direction. What ends the conversation passes as well: `Failed` on the way up,
    #: `Abort` on the way down; the receiver looks for it (`raise_ending`).
    types: type[Message] | tuple[type[Message], ...]
    #: Exact codec and shape of a tensor. None: no tensor is accepted.
    codec: str | None = None
    shape: Shape | None = None
    #: Required `Message.tensor_of`, if the message can carry a tensor; None: not checked (without codec and
    #: shape a `Step` cannot carry a gradient in any case).
    step: StepId | None = None
    dtype: torch.dtype = torch.float32  #: Floating dtype that a received tensor is decoded to.
    #: Whether `shape` is that of one sample: the tensor then has it for each of `Message.num_samples`.
    per_sample: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """Sizes that a checked header declares, in bytes."""

    metadata_bytes: int
    payload_bytes: int


def encode_frame(message: Message, tensors: Sequence[Tensor] = (), codec: str = "float32") -> list[memoryview]:
    """Return the frame as buffers to be sent in order; large ones share the tensor's memory where they can.

    Raises
    ------
    ProtocolError
        The number of tensors is not the message's.
    FrameMismatch, FrameTooLarge, ConfigError, TrainingError
        The tensor's dtype, its shape, the codec's name, or a value that int8 cannot carry.
    """
    payload = [buffer for tensor in tensors for buffer in get_codec(codec).encode(tensor)]
    head = _head(message, [tuple(tensor.shape) for tensor in tensors], codec)
    return [memoryview(head), *(buffer for buffer in payload if buffer.nbytes)]


def frame_bytes(frame: Frame) -> bytes:
    """Return a whole frame in one piece; errors as `encode_frame`."""
    return b"".join(encode_frame(frame.message, frame.tensors, frame.codec))


def frame_nbytes(message: Message, shapes: Sequence[Shape] = (), codec: str = "float32") -> int:
    """Return the bytes of the whole frame, header and metadata included; errors as `encode_frame`."""
    return len(_head(message, shapes, codec)) + sum(get_codec(codec).nbytes(shape) for shape in shapes)


def parse_header(header: Bytes, limits: Limits, peer: str) -> Header:
    """Return the sizes in a header of `HEADER_BYTES` bytes.

    Raises
    ------
    FrameMismatch
        It is shorter or longer.
    FrameVersionError
        Unknown magic or version.
    FrameTooLarge
        A declared size is above its limit.
    """
    if len(header) != HEADER_BYTES:
        raise FrameMismatch(f"{peer}: header: expected {HEADER_BYTES} bytes, received {len(header)}")
    magic, version, metadata_bytes, payload_bytes = _HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameVersionError(f"{peer}: expected a frame of psl-flower ({MAGIC!r}), received {magic!r}")
    if version != VERSION:
        raise FrameVersionError(
            f"{peer}: expected frame version {VERSION}, received {version}: run the same psl-flower on both sides"
        )
    _check_limit(peer, "metadata", metadata_bytes, limits.metadata_bytes)
    _check_limit(peer, "payload", payload_bytes, limits.payload_bytes)
    return Header(metadata_bytes, payload_bytes)


def parse_metadata(metadata: Bytes, header: Header, expect: Expectation, peer: str) -> FrameMetadata:
    """Return the checked metadata; after this the payload may be allocated.

    Raises
    ------
    WireError
        FrameMismatch: not valid metadata, not the tensor expected, or a payload length that does not follow
        from it. FrameTooLarge: a shape beyond the bounds.
    ProtocolError
        A message of another type or for another step than expected.
    """
    try:
        parsed = _decoder.decode(metadata)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameMismatch(f"{peer}: malformed metadata: {printable(error, MAX_TEXT)}") from None
    message = parsed.message
    name = f"{peer}: {type(message).__name__} frame"
    types = expect.types if isinstance(expect.types, tuple) else (expect.types,)
    ending = Failed if any(kind.goes_up for kind in types) else Abort
    if not isinstance(message, (*types, ending)):
        wanted = " or ".join(kind.__name__ for kind in types) or "nothing"
        raise ProtocolError(f"{peer}: expected {wanted}, received {type(message).__name__}")
    if message.carries is not None and expect.step is not None and message.tensor_of != expect.step:
        raise ProtocolError(f"{name}: expected {expect.step}, received {message.tensor_of}")
    if len(parsed.tensors) != message.num_tensors:
        raise FrameMismatch(f"{name}: expected {message.num_tensors} tensors, received {len(parsed.tensors)}")
    declared_bytes = 0
    for spec in parsed.tensors:
        _check_shape(name, spec.shape)
        if expect.codec is None or expect.shape is None:
            raise FrameMismatch(f"{name}: expected no tensor, received {_described(spec)}")
        shape = (message.num_samples, *expect.shape) if expect.per_sample else tuple(expect.shape)
        if (spec.codec, spec.shape) != (expect.codec, shape):
            due = TensorSpec(expect.codec, shape)
            raise FrameMismatch(f"{name}: expected {_described(due)}, received {_described(spec)}")
        declared_bytes += get_codec(spec.codec).nbytes(spec.shape)
    if header.payload_bytes != declared_bytes:
        raise FrameMismatch(f"{name}: expected {declared_bytes} bytes of payload, received {header.payload_bytes}")
    return parsed


def parse_payload(payload: Bytes, metadata: FrameMetadata, expect: Expectation, peer: str) -> Frame:
    """Return the frame; its tensor is a view of `payload` where `Codec.decode` can make one that begins aligned.

    Raises
    ------
    FrameMismatch
        An int8 scale is negative or not finite, or bits of a code stand for no level.
    """
    if not metadata.tensors:
        return Frame(metadata.message)
    (spec,) = metadata.tensors
    try:
        tensor = get_codec(spec.codec).decode(payload, spec.shape, expect.dtype)
    except WireError as error:
        raise type(error)(f"{peer}: {error}") from None
    # Some kernels sum in another order at other alignments; torch aligns its own tensors so.
    return Frame(metadata.message, (tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(),), spec.codec)


def payload_buffer(num_bytes: int) -> memoryview:
    """Return an uninitialised, writable buffer for a payload, aligned so that `parse_payload` need not copy it."""
    # numpy does not clear the memory first, and asks for large pages: the faults cost more than the copy.
    memory = np.empty(num_bytes + ALIGNMENT, dtype=np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + num_bytes].data


def decode_frame(data: Bytes, expect: Expectation, limits: Limits | None = None, peer: str = "peer") -> Frame:
    """Return the frame in `data`, which must hold that frame and nothing else; errors as the three parsers.

    A truncated frame or trailing bytes raise FrameMismatch.
    """
    view = memoryview(data).cast("B")
    header = parse_header(view[:HEADER_BYTES], limits or Limits(), peer)
    expected = HEADER_BYTES + header.metadata_bytes + header.payload_bytes
    if len(view) != expected:
        raise FrameMismatch(f"{peer}: frame: expected {expected} bytes, received {len(view)}")
    body = HEADER_BYTES + header.metadata_bytes
    metadata = parse_metadata(view[HEADER_BYTES:body], header, expect, peer)
    return parse_payload(view[body:], metadata, expect, peer)


def raise_ending(frame: Frame, peer: str) -> None:
    """Raise the error that a `Failed` or `Abort` frame stands for; do nothing for any other frame.

    Raises
    ------
    NodeError
        `Failed`: the node's own error, with its kind and message; NodeLost for one that may pass.
    ProtocolError
        `Abort`: the Lower's reason.
    """
    error = frame.message.error(peer)
    if error is not None:
        raise error


def _head(message: Message, shapes: Sequence[Shape], codec: str) -> bytes:
    """Return header and metadata of a frame to be sent."""
    name = f"{type(message).__name__} frame to be sent"
    if len(shapes) != message.num_tensors:
        raise ProtocolError(f"{name}: expected {message.num_tensors} tensors, got {len(shapes)}")
    for shape in shapes:
        _check_shape(name, shape)
    try:
        metadata = _encoder.encode(FrameMetadata(message, tuple(TensorSpec(codec, tuple(shape)) for shape in shapes)))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise FrameMismatch(f"{name}: {printable(error, MAX_TEXT)}") from None
    _check_limit(name, "metadata", len(metadata), Limits().metadata_bytes)
    payload_bytes = sum(get_codec(codec).nbytes(shape) for shape in shapes)
    return _HEADER.pack(MAGIC, VERSION, len(metadata), payload_bytes) + metadata


def _check_limit(peer: str, part: str, size: int, limit: int) -> None:
    if size > limit:
        raise FrameTooLarge(f"{peer}: {part}: expected at most {limit} bytes, received a declaration of {size}")


def _check_shape(name: str, shape: Shape) -> None:
    if len(shape) > MAX_RANK or any(not 0 <= dim <= MAX_DIM for dim in shape):
        raise FrameTooLarge(f"{name}: expected at most {MAX_RANK} dimensions of 0..{MAX_DIM}, received {shape}")
    if math.prod(max(dim, 1) for dim in shape) > MAX_ELEMENTS:
        raise FrameTooLarge(f"{name}: expected at most {MAX_ELEMENTS} elements, received shape {shape}")


def _described(spec: TensorSpec) -> str:
    return f"{printable(spec.codec)} {spec.shape}"
