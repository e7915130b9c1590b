"""100,000 mutated frames for the decoder and thousands for the gate: a typed error or a frame that was asked for."""

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable

import psutil
import pytest
import torch

from psl_flower.errors import FrameMismatch, FrameTooLarge, FrameVersionError, ProtocolError, PslError, WireError
from psl_flower.wire.codecs import CODECS
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame, decode_frame, encode_frame
from psl_flower.wire.messages import (
    Abort,
    Average,
    Failed,
    Finish,
    Hello,
    Message,
    Saved,
    Share,
    Shared,
    Smashed,
    Step,
    Welcome,
)
from psl_flower.wire.mid_step import Judge, Judged, Scored
from psl_flower.wire.plan import Plan, StepId, pack_samples
from psl_flower.wire.stream import connect

SEED = 20_240_229
NUM_DECODED = 100_000
NUM_KNOCKS = 4_000
SHAPE = (2, 3, 4)
ID = StepId(0, 1)
RUN = "run-1"
HELLO = Hello(RUN, 7, 0, (1, 2), 50, "data", bytes(range(32)))
# Most that a peer's words can make an error's text: two texts of 2,000 characters and ours.
LONGEST_TEXT = 4_500

MESSAGES: tuple[Message, ...] = (
    HELLO, Welcome(), Saved(3), Finish(), Failed("StoreError", "record 7"), Abort("disk full"), Step(),
    Step(None, Plan(ID, "train", 0.1, pack_samples([1, 2]), 5)),
    Step(ID, Plan(ID, "evaluate", 0.1, pack_samples([3]), 2**63), True),
    Smashed(ID, 0.1, 0.2, 0.3), Share(ID), Average(ID, Plan(ID, "train", 0.1, pack_samples([1, 2]), 5), True), Shared(ID),
)  # fmt: skip
MID_STEP: tuple[Message, ...] = (
    Judge(Plan(ID, "train", 0.1, pack_samples([1, 2]), 5)), Judged(ID, 0.5), Scored({"valid_loss": 0.5}),
)  # fmt: skip
CODES = ("code2", "code5", "code256")
INTERESTING = (0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xC6, 0xCB, 0xCF, 0xD9, 0xDD, 0xDF, 0xFF)
SIZES = (0, 1, 19, 2**16, 2**22, 2**30, 2**31, 2**32 - 1)


def corpus(
    codecs: tuple[str, ...] = (*CODECS, *CODES), messages: tuple[Message, ...] = MESSAGES
) -> list[tuple[bytes, Expectation]]:
    """Return valid frames of every kind and codec, with what a receiver expects when they come."""
    tensor = torch.linspace(-1, 1, 24).view(SHAPE)
    frames = []
    for message in messages:
        kinds: tuple[type[Message], ...] = (type(message),)
        if isinstance(message, Failed | Abort):
            kinds = (Smashed, Saved) if isinstance(message, Failed) else (Step, Finish)
        for codec in codecs if message.num_tensors else ("float32",):
            raw = b"".join(encode_frame(message, [tensor] * message.num_tensors, codec))
            per_sample = isinstance(message, Judge)
            tensors = (codec, SHAPE[per_sample:], ID) if message.num_tensors else ()
            frames.append((raw, Expectation(kinds, *tensors, per_sample=per_sample)))
    return frames


def flip(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)


def replace(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    raw[draw.randrange(len(raw))] = draw.choice(INTERESTING)


def insert(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    at = draw.randrange(len(raw) + 1)
    raw[at:at] = draw.randbytes(draw.randrange(1, 9))


def remove(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    at = draw.randrange(len(raw))
    del raw[at : at + draw.randrange(1, 9)]


def truncate(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    del raw[draw.randrange(len(raw)) :]


def repeat(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    at = draw.randrange(len(raw))
    raw[at:at] = raw[at : at + draw.randrange(1, 33)]


def splice(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    other = draw.choice(others)
    raw[draw.randrange(len(raw)) :] = other[draw.randrange(len(other)) :]


def resize(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """Declare another size in the header."""
    if len(raw) >= 20:
        metadata_bytes, payload_bytes = struct.unpack_from("<IQ", raw, 8)
        if draw.random() < 0.5:
            metadata_bytes = draw.choice((*SIZES, max(0, metadata_bytes + draw.randrange(-3, 4))))
        else:
            payload_bytes = draw.choice((*SIZES, 2**60, 2**64 - 1, max(0, payload_bytes + draw.randrange(-3, 4))))
        struct.pack_into("<IQ", raw, 8, metadata_bytes % 2**32, payload_bytes % 2**64)


def refit(raw: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """Let the header fit what follows, so that mutated metadata, or a payload of another length, are read."""
    if len(raw) > 20:
        sizes = struct.unpack_from("<IQ", raw, 8)
        kept = draw.randrange(2)
        fitting = [len(raw) - 20 - min(sizes[1 - kept], len(raw) - 20)] * 2
        fitting[1 - kept] = len(raw) - 20 - fitting[kept]
        struct.pack_into("<IQ", raw, 8, *fitting)


MUTATIONS: tuple[Callable[[bytearray, random.Random, list[bytes]], None], ...] = (
    flip, replace, insert, remove, truncate, repeat, splice, resize,
)  # fmt: skip


def mutated(raw: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Return a frame after one to three mutations, mostly with a header that fits again."""
    changed = bytearray(raw)
    for _ in range(draw.randrange(1, 4)):
        if changed:
            draw.choice(MUTATIONS)(changed, draw, others)
    if draw.random() < 0.75:
        refit(changed, draw, others)
    return bytes(changed)


def check(frame: Frame, expect: Expectation) -> None:
    """Check that a frame which was let through is of the form that the receiver asked for."""
    kinds = expect.types if isinstance(expect.types, tuple) else (expect.types,)
    ending = Failed if any(kind.goes_up for kind in kinds) else Abort
    assert isinstance(frame.message, (*kinds, ending))
    assert len(frame.tensors) == frame.message.num_tensors
    for tensor in frame.tensors:
        shape = (frame.message.num_samples, *(expect.shape or ())) if expect.per_sample else expect.shape
        assert tuple(tensor.shape) == shape and tensor.dtype == expect.dtype
        match frame.message:
            case (
                Smashed(id=step) | Shared(id=step) | Average(of=step) | Step(gradient_of=step) | Share(gradient_of=step)
                | Judged(id=step) | Judge(plan=Plan(id=step))
            ):  # fmt: skip
                assert step == expect.step
            case other:
                pytest.fail(f"{other} has no tensor")
    plain = Step(None, frame.message.plan, frame.message.save) if isinstance(frame.message, Step) else frame.message
    if not plain.num_tensors:
        assert decode_frame(b"".join(encode_frame(plain)), Expectation(type(plain))).message == plain


def test_100_000_mutated_frames_meet_a_typed_error_or_are_what_was_asked_for() -> None:
    draw = random.Random(SEED)
    frames = corpus(messages=(*MESSAGES, *MID_STEP))
    for raw, expect in frames:
        check(decode_frame(raw, expect), expect)
    others = [raw for raw, _ in frames]
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    met: Counter[str] = Counter()
    for number in range(NUM_DECODED):
        raw, expect = frames[number % len(frames)]
        if number % 8 == 0:  # at the wrong moment
            expect = draw.choice(frames)[1]
        try:
            frame = decode_frame(bytearray(mutated(raw, draw, others)), expect, peer="peer")
        except (WireError, ProtocolError) as error:
            met[type(error).__name__] += 1
            text = str(error)
            assert text.startswith("peer: ") and text.isprintable() and len(text) < LONGEST_TEXT
        else:
            met["let through"] += 1
            check(frame, expect)
    assert process.memory_info().rss - before_bytes < 64 * 2**20
    # Mutations that all met the same error would have tried one line of the decoder.
    wanted = {FrameMismatch, FrameTooLarge, FrameVersionError, ProtocolError}
    assert met.keys() == {error.__name__ for error in wanted} | {"let through"}
    assert min(met.values()) > 300, met


def knock(endpoint: ExchangeEndpoint, data: bytes) -> bytes:
    """Send bytes to the endpoint, say no more, and return its answer."""
    answer = b""
    with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65_536):
                answer += chunk
        except ConnectionError:  # refused before it was all sent
            pass
    return answer


def test_the_gate_lets_no_mutated_greeting_in(caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(SEED + 1)
    others = [raw for raw, _ in corpus(tuple(CODECS))]
    greeting = b"".join(encode_frame(HELLO))
    expect = Expectation(Smashed, "float32", SHAPE, ID)
    told: Counter[str] = Counter()
    with ExchangeEndpoint("127.0.0.1", run=RUN, handshake_timeout_s=10) as endpoint:
        endpoint.issue_ticket(0, 7, (1, 2), 50, "data")  # for all that HELLO says but its token
        hello = Hello(RUN, 8, 1, (0,), 50, "data", endpoint.issue_ticket(1, 8, (0,), 50, "data"))
        with connect(endpoint.host, endpoint.port, hello, cafile_pem=None, timeout_s=5) as honest:
            endpoint.wait_for([1], 5)
            process = psutil.Process()
            before_bytes = process.memory_info().rss
            for number in range(NUM_KNOCKS):
                raw = greeting if number % 4 else draw.choice(others)
                answer = knock(endpoint, mutated(raw, draw, others))
                if answer:
                    with pytest.raises(PslError):
                        raise_if_refused(answer)
                told["reason" if answer else "none"] += 1
                assert endpoint.connected == {1}
                if number % 500 == 0:
                    honest.send(Smashed(ID), [torch.ones(SHAPE)], timeout_s=5)
                    assert torch.equal(endpoint.exchange({}, {1: expect}, timeout_s=5)[1].tensor, torch.ones(SHAPE))
            assert process.memory_info().rss - before_bytes < 32 * 2**20
        refused = endpoint.refused
    assert sum(refused.values()) == NUM_KNOCKS
    kinds = {"FrameMismatch", "FrameTooLarge", "FrameVersionError", "ProtocolError", "AuthenticationError", "PeerLost"}
    assert refused.keys() == kinds
    assert min(refused.values()) > 10, refused
    assert told["reason"] > NUM_KNOCKS / 2
    assert len(caplog.records) < 50


def raise_if_refused(answer: bytes) -> None:
    frame = decode_frame(answer, Expectation(Welcome))
    if isinstance(frame.message, Abort):
        assert frame.message.reason.startswith("refused")
        raise ProtocolError(frame.message.reason)
