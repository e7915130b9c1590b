"""Frames under any input: exact round trips; garbage meets a typed error and costs no memory."""

import struct
import tracemalloc

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psl_flower.errors import FrameMismatch, FrameTooLarge, ProtocolError, WireError
from psl_flower.wire.codecs import CODECS, wire_roundtrip
from psl_flower.wire.frames import Expectation, Limits, decode_frame, encode_frame, frame_nbytes
from psl_flower.wire.messages import ADAPTATION, Failed, Hello, Keep, Message, Saved, Smashed, Step
from psl_flower.wire.mid_step import Scored
from psl_flower.wire.plan import Plan, StepId

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INTEGERS = {"float32": torch.int32, "bfloat16": torch.int16, "float16": torch.int16}
LIMITS = Limits(metadata_bytes=2**16, payload_bytes=2**16)

counts = st.integers(0, 2**63 - 1)
ids = st.builds(StepId, counts, counts, counts)
seconds = st.floats(0, 1e9)
shapes = st.lists(st.integers(0, 5), max_size=6).map(tuple)
plans = st.builds(
    Plan,
    ids,
    st.sampled_from(["train", "evaluate"]),
    seconds,
    st.binary(max_size=20).map(lambda b: b * 8),
    counts,
)
hellos = st.builds(
    Hello,
    run=st.text(max_size=20),
    node=st.integers(-(2**63), 2**64 - 1),
    upper=st.just(ADAPTATION) | counts,
    positions=st.lists(counts, max_size=5).map(tuple),
    num_samples=counts,
    dataset=st.text(max_size=20),
    token=st.binary(min_size=32, max_size=32),
)
messages = st.one_of(
    hellos,
    st.builds(Step, st.none(), st.none() | plans, st.booleans()),
    st.builds(Keep, counts),
    st.builds(Scored, st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False), max_size=5)),
    st.builds(Saved, counts),
    st.builds(Failed, st.text(max_size=50), st.text(max_size=50)),
)


def valid_frame() -> tuple[bytes, Expectation]:
    data = b"".join(encode_frame(Smashed(StepId(0, 1)), [torch.arange(6.0).view(2, 3)]))
    return data, Expectation(Smashed, "float32", (2, 3), StepId(0, 1))


@given(messages)
def test_messages_come_back_equal(message: Message) -> None:
    data = b"".join(encode_frame(message))
    assert decode_frame(data, Expectation(type(message))).message == message
    assert len(data) == frame_nbytes(message)


@settings(deadline=None)
@given(st.data(), ids, shapes, st.sampled_from(sorted(FLOATS)))
def test_any_bit_pattern_of_a_float_codec_comes_back_bit_equal(
    data: st.DataObject, identity: StepId, shape: tuple[int, ...], codec: str
) -> None:
    dtype = FLOATS[codec]
    num_bytes = dtype.itemsize * torch.Size(shape).numel()
    pattern = bytearray(data.draw(st.binary(min_size=num_bytes, max_size=num_bytes)))
    tensor = torch.frombuffer(pattern, dtype=dtype).view(shape) if pattern else torch.empty(shape, dtype=dtype)
    raw = b"".join(encode_frame(Smashed(identity), [tensor], codec))
    back = decode_frame(raw, Expectation(Smashed, codec, shape, identity, dtype)).tensor
    assert back.shape == shape
    assert torch.equal(back.view(-1).view(INTEGERS[codec]), tensor.reshape(-1).view(INTEGERS[codec]))


@settings(deadline=None)
@given(shapes, st.integers(0, 1000), st.sampled_from([*CODECS]))
def test_what_arrives_is_what_the_reference_computes(shape: tuple[int, ...], seed: int, codec: str) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 9 - 4)
    raw = b"".join(encode_frame(Smashed(StepId(0, 0)), [tensor], codec))
    assert torch.equal(decode_frame(raw, Expectation(Smashed, codec, shape)).tensor, wire_roundtrip(tensor, codec))


@given(st.binary(max_size=300))
def test_random_bytes_meet_a_typed_error(data: bytes) -> None:
    with pytest.raises((WireError, ProtocolError)):
        decode_frame(data, valid_frame()[1])


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_metadata_behind_a_valid_header_meets_a_typed_error(body: bytes) -> None:
    data = struct.pack("<4sIIQ", b"PSLF", 1, len(body), 0) + body
    with pytest.raises((WireError, ProtocolError)):
        decode_frame(data, valid_frame()[1])


KEYS = ["type", "message", "tensors", "id", "step", "codec", "shape"]
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
objects = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(objects)
def test_well_formed_messagepack_of_another_meaning_meets_a_typed_error(value: object) -> None:
    body = msgspec.msgpack.encode(value)
    data = struct.pack("<4sIIQ", b"PSLF", 1, len(body), 0) + body
    with pytest.raises((WireError, ProtocolError)):
        decode_frame(data, valid_frame()[1])


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_frame_is_refused_or_still_has_the_expected_form(data: st.DataObject) -> None:
    raw, expect = valid_frame()
    mutated = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    try:
        frame = decode_frame(bytes(mutated[:cut]), expect)
    except (WireError, ProtocolError):
        return
    assert cut == len(raw)
    if isinstance(frame.message, Smashed):  # a payload or a time changed: no frame can tell that, TLS does
        assert frame.tensor.shape == (2, 3) and frame.message.id == StepId(0, 1)


@given(
    st.integers(2**16 + 1, 2**64 - 1) | st.just(2**60),
    st.integers(0, 2**32 - 1),
)
def test_declared_sizes_allocate_nothing(payload_bytes: int, metadata_bytes: int) -> None:
    data = struct.pack("<4sIIQ", b"PSLF", 1, metadata_bytes, payload_bytes)
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge):
            decode_frame(data, valid_frame()[1], LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**17
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [[2**30, 2**30], [2**20] * 6, [0, 2**32 - 1, 2**32 - 1], [2**32 - 1]])
def test_declared_shapes_allocate_nothing(shape: list[int]) -> None:
    tensors = [{"codec": "float32", "shape": shape}]
    message = {"type": "smashed", "id": {"epoch": 0, "step": 1}}
    body = msgspec.msgpack.encode({"message": message, "tensors": tensors})
    data = struct.pack("<4sIIQ", b"PSLF", 1, len(body), 0) + body
    tracemalloc.start()
    try:
        for expect in (valid_frame()[1], Expectation(Smashed, "float32", tuple(shape))):
            with pytest.raises((FrameMismatch, FrameTooLarge)):
                decode_frame(data, expect, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**17
    finally:
        tracemalloc.stop()
