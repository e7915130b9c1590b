"""Frames: limits, and one error class for each defect."""

import math
import struct

import msgspec
import pytest
import torch

from psl_flower.errors import FrameMismatch, FrameTooLarge, FrameVersionError, NodeError, ProtocolError
from psl_flower.wire.frames import (
    HEADER_BYTES,
    Expectation,
    Frame,
    Limits,
    decode_frame,
    encode_frame,
    raise_ending,
)
from psl_flower.wire.messages import (
    Abort,
    Average,
    Failed,
    Hello,
    Keep,
    Message,
    Saved,
    Share,
    Shared,
    Smashed,
    Step,
)
from psl_flower.wire.mid_step import Adapted
from psl_flower.wire.plan import MAX_SAMPLES, Plan, StepId, pack_samples
from tests.unit.tiny_frames import HELLO, ID, ONE, PLAN, joined


def raw(metadata: object, payload: bytes = b"", **fields: int) -> bytes:
    """Return a frame with the given metadata, and header fields that may be wrong."""
    body = msgspec.msgpack.encode(metadata)
    magic = fields.get("magic", 0x46_4C_53_50)
    sizes = fields.get("metadata_bytes", len(body)), fields.get("payload_bytes", len(payload))
    return struct.pack("<IIIQ", magic, fields.get("version", 1), *sizes) + body + payload


def smashed(shape: object = (1,), codec: str = "float32", **fields: int) -> bytes:
    message = {"type": "smashed", "id": {"epoch": 0, "step": 0}}
    return raw({"message": message, "tensors": [{"codec": codec, "shape": shape}]}, bytes(4), **fields)


EXPECT = Expectation(Smashed, "float32", (1,), StepId(0, 0))


def test_the_frame_that_the_helper_builds_is_valid() -> None:
    """Else the tests of refusals below would prove nothing."""
    assert decode_frame(smashed(), EXPECT).tensor.tolist() == [0.0]


def test_a_large_tensor_is_neither_copied_nor_joined() -> None:
    tensor = torch.zeros(1000)
    buffers = encode_frame(Smashed(ID), [tensor])
    assert [b.nbytes for b in buffers[1:]] == [4000]
    tensor[0] = 1
    assert bytes(buffers[1][:4]) != bytes(4)


def test_the_largest_batch_fits() -> None:
    plan = Plan(ID, "train", 0.1, pack_samples(range(MAX_SAMPLES)), 0)
    back = decode_frame(joined(Step(plan=plan), []), Expectation(Step)).message
    assert isinstance(back, Step) and back.plan is not None
    assert back.plan.sample_indices().tolist() == list(range(MAX_SAMPLES))
    with pytest.raises(ValueError, match="at most 65536"):
        Plan(ID, "train", 0.1, bytes(8 * MAX_SAMPLES + 8), 0)


@pytest.mark.parametrize("cut", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, -1])
def test_a_truncated_frame_is_a_mismatch(cut: int) -> None:
    with pytest.raises(FrameMismatch, match="expected"):
        decode_frame(smashed()[:cut], EXPECT)


def test_trailing_bytes_are_a_mismatch() -> None:
    with pytest.raises(FrameMismatch, match="expected"):
        decode_frame(smashed() + b"x", EXPECT)


@pytest.mark.parametrize("fields", [{"magic": 1}, {"version": 2}, {"version": 0}])
def test_unknown_magic_or_version(fields: dict[str, int]) -> None:
    with pytest.raises(FrameVersionError, match=r"peer: expected .* received"):
        decode_frame(smashed((1,), "float32", **fields), EXPECT)


@pytest.mark.parametrize("fields", [{"metadata_bytes": 2**32 - 1}, {"payload_bytes": 2**60}])
def test_sizes_above_the_limit(fields: dict[str, int]) -> None:
    with pytest.raises(FrameTooLarge, match=str(next(iter(fields.values())))):
        decode_frame(smashed((1,), "float32", **fields), EXPECT)
    with pytest.raises(FrameTooLarge):
        decode_frame(smashed(), EXPECT, Limits(payload_bytes=3))


@pytest.mark.parametrize("shape", [(1,) * 7, (-1,), (2**32,), (1.0,), "x", ("1",)])
def test_shapes_that_are_not_shapes(shape: object) -> None:
    with pytest.raises(FrameMismatch, match="malformed metadata"):
        decode_frame(smashed(shape), EXPECT)


def test_a_product_that_overflows_is_refused_also_when_a_dimension_is_zero() -> None:
    for shape in [(2**31,) * 6, (2**32 - 1, 2**32 - 1, 0)]:
        with pytest.raises(FrameTooLarge, match="elements"):
            decode_frame(smashed(shape), Expectation(Smashed, "float32", shape))


@pytest.mark.parametrize(
    "expect",
    [
        Expectation(Smashed),
        Expectation(Smashed, "bfloat16", (1,)),
        Expectation(Smashed, "float32", (2,)),
        Expectation(Smashed, "float32", (1, 1)),
    ],
)
def test_a_tensor_other_than_expected(expect: Expectation) -> None:
    with pytest.raises(FrameMismatch, match=r"Smashed frame: expected .* received float32"):
        decode_frame(smashed(), expect)


def test_a_payload_that_does_not_follow_from_the_shape() -> None:
    data = smashed() + bytes(4)
    wrong = data[:12] + struct.pack("<Q", 8) + data[HEADER_BYTES:]
    with pytest.raises(FrameMismatch, match="expected 4 bytes of payload, received 8"):
        decode_frame(wrong, EXPECT)


def test_another_message_or_step_is_out_of_order() -> None:
    with pytest.raises(ProtocolError, match="expected Saved or Hello, received Smashed"):
        decode_frame(smashed(), Expectation((Saved, Hello)))
    with pytest.raises(ProtocolError, match="step=1"):
        decode_frame(smashed(), Expectation(Smashed, "float32", (1,), StepId(0, 1)))
    adapted = joined(Adapted(ID, 0.5), [ONE[0, :1]])
    with pytest.raises(ProtocolError, match="step=1"):
        decode_frame(adapted, Expectation(Adapted, "float32", (1,), StepId(0, 1)))
    shared = joined(Shared(ID), [ONE[0, :1]])
    with pytest.raises(ProtocolError, match="step=1"):
        decode_frame(shared, Expectation(Shared, "float32", (1,), StepId(0, 1)))
    with pytest.raises(ProtocolError, match="received None"):
        decode_frame(joined(Step(), []), Expectation(Step, step=ID))


@pytest.mark.parametrize(
    ("message", "tensors"),
    [
        (Smashed(ID), []),
        (Saved(1), [ONE]),
        (Step(), [ONE]),
        (Step(ID), []),
        (Share(ID), []),
        (Average(ID), []),
        (Shared(ID), []),
        (Keep(1), [ONE]),
    ],
)
def test_the_number_of_tensors_follows_from_the_message(message: Message, tensors: list[torch.Tensor]) -> None:
    with pytest.raises(ProtocolError, match="tensors"):
        encode_frame(message, tensors)
    with pytest.raises(ProtocolError, match="tensor"):
        _ = Frame(Saved(1)).tensor


def test_a_tensor_in_the_wrong_message_is_refused_on_arrival() -> None:
    spec = [{"codec": "float32", "shape": [1]}]
    with pytest.raises(FrameMismatch, match="expected 0 tensors, received 1"):
        decode_frame(raw({"message": {"type": "saved", "step": 1}, "tensors": spec}, bytes(4)), Expectation(Saved))


@pytest.mark.parametrize(
    "message",
    [
        {"type": "saved"},
        {"type": "saved", "step": -1},
        {"type": "saved", "step": True},
        {"type": "saved", "step": "1"},
        {"type": "saved", "step": 1, "extra": 1},
        {"type": "unknown"},
        {"step": 1},
        {"type": "smashed", "id": {"epoch": 0, "step": 0}, "read_s": math.nan},
        {"type": "failed", "kind": "x", "message": "y" * 2001},
        {"type": "step", "plan": {"id": 1}},
        {"type": "keep", "step": -1},
        {"type": "adapt", "id": {"epoch": 0, "step": 0}, "lr": 0.1, "classes": b"1234567"},
        {"type": "adapt", "id": {"epoch": 0, "step": 0}, "lr": math.inf, "classes": b"12345678"},
        {"type": "adapt", "id": {"epoch": 0, "step": 0}, "lr": 0.1, "classes": b"12345678", "absent": [-1]},
        {"type": "adapted", "id": {"epoch": 0, "step": 0}},
        {
            "type": "hello",
            "run": "r",
            "node": 1,
            "upper": -2,
            "positions": [],
            "num_samples": 1,
            "dataset": "d",
            "token": bytes(32),
        },
        ["saved", 1],
        None,
    ],
)
def test_malformed_metadata(message: object) -> None:
    with pytest.raises(FrameMismatch, match="malformed metadata"):
        decode_frame(raw({"message": message}), Expectation((Saved, Smashed, Step, Failed)))


def test_metadata_that_is_not_text_or_too_deep() -> None:
    for body in (b"\xc1", b"\x81\xa7message\x82\xa4type\xa6failed\xa4kind\xa1\xff", b"\x91" * 100_000):
        data = struct.pack("<4sIIQ", b"PSLF", 1, len(body), 0) + body
        with pytest.raises(FrameMismatch, match="malformed metadata"):
            decode_frame(data, Expectation(Failed))


def test_failed_and_abort_pass_in_their_own_direction_only() -> None:
    failed, abort = joined(Failed("StoreError", "damaged\x1b[2J"), []), joined(Abort("disk full"), [])
    with pytest.raises(NodeError, match=r"Upper 1 failed: StoreError: damaged\\x1b\[2J"):
        raise_ending(decode_frame(failed, Expectation(Saved)), "Upper 1")
    with pytest.raises(ProtocolError, match="Lower ended the exchange: disk full"):
        raise_ending(decode_frame(abort, Expectation(Step)), "Lower")
    for data, expect in ((abort, Expectation(Saved)), (failed, Expectation(Step))):
        with pytest.raises(ProtocolError, match="expected"):
            decode_frame(data, expect)


def test_reporting_a_failure_never_fails() -> None:
    failed = Failed("OSError", "\udcff" + "x" * 5000)
    assert len(failed.message) == 2000
    assert decode_frame(joined(failed, []), Expectation(Saved)).message == failed


def test_secrets_and_samples_stay_out_of_repr() -> None:
    assert HELLO.token.hex() not in repr(HELLO) and repr(HELLO.token) not in repr(HELLO)
    assert repr(PLAN.samples) not in repr(PLAN)
    assert "-2" not in repr(Frame(Smashed(ID), (ONE,)))


def test_dtype_is_kept_when_asked() -> None:
    data = joined(Smashed(ID), [ONE], "bfloat16")
    frame = decode_frame(data, Expectation(Smashed, "bfloat16", (1, 2), dtype=torch.bfloat16))
    assert frame.tensor.dtype == torch.bfloat16 and frame.tensor.tolist() == ONE.tolist()


def test_a_received_tensor_begins_as_torch_lets_tensors_begin() -> None:
    """Wherever it lies in the frame: kernels that add up in another order elsewhere would change the last bits."""
    offsets = set()
    for spare in range(64):
        data = bytearray(spare) + joined(Smashed(ID), [ONE])
        view = memoryview(data)[spare:]
        payload = torch.frombuffer(view[-8:], dtype=torch.uint8)
        offsets.add(payload.data_ptr() % 64)
        tensor = decode_frame(view, Expectation(Smashed, "float32", (1, 2))).tensor
        assert tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor, ONE)
    assert len(offsets) >= 16  # memory begins at multiples of 16
