"""Frames: golden bytes, round trips, one error class for each defect."""

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
    frame_nbytes,
    raise_ending,
)
from psl_flower.wire.messages import (
    Abort,
    Average,
    Failed,
    Finish,
    Hello,
    Keep,
    Message,
    Saved,
    Share,
    Shared,
    Smashed,
    Step,
    Welcome,
)
from psl_flower.wire.mid_step import Adapt, Adapted, Judge, Judged, Scored
from psl_flower.wire.plan import MAX_SAMPLES, Plan, StepId, pack_samples

ID = StepId(1, 2, 3)
PLAN = Plan(ID, "train", 0.5, pack_samples([7, 8]), 2**63 - 1)
HELLO = Hello("run", 2**64 - 1, 3, (0, 5), 100, "digest", bytes(range(32)))
ONE = torch.tensor([[1.0, -2.0]])

# One frame of every kind: header, metadata and payload as they were when version 1 was fixed.
# If one changes, raise frames.VERSION.
GOLDEN: dict[str, tuple[Message, list[torch.Tensor], str]] = {
    "welcome": (Welcome(), [], "float32"),
    "step": (Step(ID, PLAN, True), [ONE], "int8"),
    "step without gradient": (Step(None, None, True), [], "float32"),
    "adapt": (Adapt(ID, 0.5, pack_samples([7, 8]), (1,)), [ONE], "float32"),
    "adapt weighted": (Adapt(ID, 0.5, pack_samples([7]), class_weights=(0.5, 2.0)), [ONE], "float32"),
    "adapt mixed": (Adapt(ID, 0.5, pack_samples([7]), (), pack_samples([8]), 0.25), [ONE], "float32"),
    "step mixed": (Step(None, Plan(ID, "train", 0.5, pack_samples([7]), 0, 0.25)), [], "float32"),
    "share": (Share(ID), [ONE], "int8"),
    "average": (Average(ID, PLAN, True), [ONE], "float32"),
    "shared": (Shared(ID), [ONE], "float32"),
    "keep": (Keep(9), [], "float32"),
    "judge": (Judge(PLAN), [torch.ones(2, 1)], "float32"),
    "judged": (Judged(ID, 0.25), [ONE], "bfloat16"),
    "scored": (Scored({"valid_loss": 0.25, "auc": 1.0}), [], "float32"),
    "abort": (Abort("why"), [], "float32"),
    "finish": (Finish(), [], "float32"),
    "hello": (HELLO, [], "float32"),
    "smashed": (Smashed(ID, 0.25, 0.5, 1.0), [ONE], "bfloat16"),
    "adapted": (Adapted(ID, 0.25), [ONE], "float32"),
    "saved": (Saved(9), [], "float32"),
    "failed": (Failed("StoreError", "damaged"), [], "float32"),
}
GOLDEN_HEX = {
    "welcome": (
        "50534c460100000020000000000000000000000082a76d65737361676581a474797065a777656c636f6d65a774656e736f727390"
    ),
    "step": (
        "50534c4601000000c20000000a0000000000000082a76d65737361676584a474797065a473746570ab6772616469656e"
        "745f6f6683a565706f636801a47374657002a7617474656d707403a4706c616e85a2696483a565706f636801a4737465"
        "7002a7617474656d707403a46d6f6465a5747261696ea26c72cb3fe0000000000000a773616d706c6573c41007000000"
        "000000000800000000000000ac6175676d656e745f73656564cf7fffffffffffffffa473617665c3a774656e736f7273"
        "9182a5636f646563a4696e7438a573686170659201020402013c0402813c7f81"
    ),
    "step without gradient": (
        "50534c460100000036000000000000000000000082a76d65737361676584a474797065a473746570ab6772616469656e"
        "745f6f66c0a4706c616ec0a473617665c3a774656e736f727390"
    ),
    "adapt": (
        "50534c46010000007f000000080000000000000082a76d65737361676585a474797065a56164617074a2696483a56570"
        "6f636801a47374657002a7617474656d707403a26c72cb3fe0000000000000a7636c6173736573c41007000000000000"
        "000800000000000000a6616273656e749101a774656e736f72739182a5636f646563a7666c6f61743332a57368617065"
        "9201020000803f000000c0"
    ),
    "adapt weighted": (
        "50534c46010000008f000000080000000000000082a76d65737361676585a474797065a56164617074a2696483a56570"
        "6f636801a47374657002a7617474656d707403a26c72cb3fe0000000000000a7636c6173736573c40807000000000000"
        "00ad636c6173735f7765696768747392cb3fe0000000000000cb4000000000000000a774656e736f72739182a5636f64"
        "6563a7666c6f61743332a573686170659201020000803f000000c0"
    ),
    "adapt mixed": (
        "50534c46010000008f000000080000000000000082a76d65737361676586a474797065a56164617074a2696483a56570"
        "6f636801a47374657002a7617474656d707403a26c72cb3fe0000000000000a7636c6173736573c40807000000000000"
        "00a66f7468657273c4080800000000000000a6776569676874cb3fd0000000000000a774656e736f72739182a5636f64"
        "6563a7666c6f61743332a573686170659201020000803f000000c0"
    ),
    "step mixed": (
        "50534c46010000009b000000000000000000000082a76d65737361676584a474797065a473746570ab6772616469656e"
        "745f6f66c0a4706c616e86a2696483a565706f636801a47374657002a7617474656d707403a46d6f6465a5747261696e"
        "a26c72cb3fe0000000000000a773616d706c6573c4080700000000000000ac6175676d656e745f7365656400aa6d6978"
        "5f776569676874cb3fd0000000000000a473617665c2a774656e736f727390"
    ),
    "share": (
        "50534c4601000000560000000a0000000000000082a76d65737361676582a474797065a57368617265ab677261646965"
        "6e745f6f6683a565706f636801a47374657002a7617474656d707403a774656e736f72739182a5636f646563a4696e74"
        "38a573686170659201020402013c0402813c7f81"
    ),
    "average": (
        "50534c4601000000bf000000080000000000000082a76d65737361676584a474797065a761766572616765a26f6683a5"
        "65706f636801a47374657002a7617474656d707403a4706c616e85a2696483a565706f636801a47374657002a7617474"
        "656d707403a46d6f6465a5747261696ea26c72cb3fe0000000000000a773616d706c6573c41007000000000000000800"
        "000000000000ac6175676d656e745f73656564cf7fffffffffffffffa473617665c3a774656e736f72739182a5636f64"
        "6563a7666c6f61743332a573686170659201020000803f000000c0"
    ),
    "shared": (
        "50534c460100000051000000080000000000000082a76d65737361676582a474797065a6736861726564a2696483a565"
        "706f636801a47374657002a7617474656d707403a774656e736f72739182a5636f646563a7666c6f61743332a5736861"
        "70659201020000803f000000c0"
    ),
    "judge": (
        "50534c46010000009d000000080000000000000082a76d65737361676582a474797065a56a75646765a4706c616e85a2"
        "696483a565706f636801a47374657002a7617474656d707403a46d6f6465a5747261696ea26c72cb3fe0000000000000"
        "a773616d706c6573c41007000000000000000800000000000000ac6175676d656e745f73656564cf7fffffffffffffff"
        "a774656e736f72739182a5636f646563a7666c6f61743332a573686170659202010000803f0000803f"
    ),
    "judged": (
        "50534c460100000060000000040000000000000082a76d65737361676583a474797065a66a7564676564a2696483a565"
        "706f636801a47374657002a7617474656d707403a46c6f7373cb3fd0000000000000a774656e736f72739182a5636f64"
        "6563a862666c6f61743136a57368617065920102803f00c0"
    ),
    "scored": (
        "50534c460100000049000000000000000000000082a76d65737361676582a474797065a673636f726564a76669677572"
        "657382aa76616c69645f6c6f7373cb3fd0000000000000a3617563cb3ff0000000000000a774656e736f727390"
    ),
    "keep": (
        "50534c460100000023000000000000000000000082a76d65737361676582a474797065a46b656570a47374657009a774656e736f727390"
    ),
    "abort": (
        "50534c460100000029000000000000000000000082a76d65737361676582a474797065a561626f7274a6726561736f6e"
        "a3776879a774656e736f727390"
    ),
    "finish": (
        "50534c46010000001f000000000000000000000082a76d65737361676581a474797065a666696e697368a774656e736f727390"
    ),
    "hello": (
        "50534c46010000008c000000000000000000000082a76d65737361676588a474797065a568656c6c6fa372756ea37275"
        "6ea46e6f6465cfffffffffffffffffa5757070657203a9706f736974696f6e73920005ab6e756d5f73616d706c657364"
        "a764617461736574a6646967657374a5746f6b656ec420000102030405060708090a0b0c0d0e0f101112131415161718"
        "191a1b1c1d1e1fa774656e736f727390"
    ),
    "smashed": (
        "50534c46010000008a000000040000000000000082a76d65737361676585a474797065a7736d6173686564a2696483a5"
        "65706f636801a47374657002a7617474656d707403a6726561645f73cb3fd0000000000000a9666f72776172645f73cb"
        "3fe0000000000000aa6261636b776172645f73cb3ff0000000000000a774656e736f72739182a5636f646563a862666c"
        "6f61743136a57368617065920102803f00c0"
    ),
    "adapted": (
        "50534c460100000060000000080000000000000082a76d65737361676583a474797065a761646170746564a2696483a5"
        "65706f636801a47374657002a7617474656d707403a46c6f7373cb3fd0000000000000a774656e736f72739182a5636f"
        "646563a7666c6f61743332a573686170659201020000803f000000c0"
    ),
    "saved": (
        "50534c460100000024000000000000000000000082a76d65737361676582a474797065a57361766564a47374657009a7"
        "74656e736f727390"
    ),
    "failed": (
        "50534c46010000003f000000000000000000000082a76d65737361676583a474797065a66661696c6564a46b696e64aa"
        "53746f72654572726f72a76d657373616765a764616d61676564a774656e736f727390"
    ),
}


def joined(message: Message, tensors: list[torch.Tensor], codec: str = "float32") -> bytes:
    return b"".join(encode_frame(message, tensors, codec))


def expecting(message: Message, tensors: list[torch.Tensor], codec: str) -> Expectation:
    shape = tuple(tensors[0].shape) if tensors else None
    return Expectation(type(message), codec if tensors else None, shape)


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


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_bytes(kind: str) -> None:
    assert joined(*GOLDEN[kind]).hex() == GOLDEN_HEX[kind]


@pytest.mark.parametrize("kind", GOLDEN)
def test_round_trip(kind: str) -> None:
    message, tensors, codec = GOLDEN[kind]
    data = joined(message, tensors, codec)
    frame = decode_frame(data, expecting(message, tensors, codec))
    assert frame.message == message
    assert [t.tolist() for t in frame.tensors] == [t.tolist() for t in tensors]
    assert len(data) == frame_nbytes(message, [tuple(t.shape) for t in tensors], codec) == frame.nbytes


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
