"""Codecs: exact sizes, exact bytes, no copies where none are needed."""

import contextlib
import math

import numpy as np
import pytest
import torch

from psl_flower.errors import ConfigError, FrameMismatch, TrainingError
from psl_flower.wire.codecs import CODECS, get_codec, wire_roundtrip

NAMES = ("float32", "bfloat16", "float16", "int8")
SHAPES = [(), (0,), (0, 3), (3, 0), (7,), (2, 1, 3, 3, 4)]


def wire(tensor: torch.Tensor, name: str) -> bytearray:
    return bytearray(b"".join(get_codec(name).encode(tensor)))


def test_the_names_are_those_of_the_design() -> None:
    assert tuple(CODECS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_size_is_known_beforehand_and_decode_equals_roundtrip(name: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    data = wire(tensor, name)
    decoded = get_codec(name).decode(data, shape)
    assert len(data) == get_codec(name).nbytes(shape)
    assert decoded.shape == shape and decoded.dtype == torch.float32
    assert torch.equal(decoded, wire_roundtrip(tensor, name))


def test_float32_is_bit_exact_also_for_values_that_are_not_finite() -> None:
    tensor = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4e38])
    back = get_codec("float32").decode(wire(tensor, "float32"), (6,))
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_narrow_floats_round_as_torch_does_and_keep_what_is_not_finite(name: str) -> None:
    dtype = getattr(torch, name)
    tensor = torch.tensor([1 / 3, -2.5, math.inf, -math.inf, math.nan])
    kept = get_codec(name).decode(wire(tensor, name), (5,), dtype=dtype)
    assert kept.dtype == dtype
    assert torch.equal(kept.view(torch.int16), tensor.to(dtype).view(torch.int16))
    assert torch.equal(torch.isfinite(kept), torch.isfinite(tensor))


def test_float32_is_not_copied_on_the_way_out_nor_in() -> None:
    tensor = torch.zeros(2, 3)
    (buffer,) = get_codec("float32").encode(tensor)
    tensor[0, 0] = 1.0
    assert np.frombuffer(buffer, np.float32)[0] == 1.0
    data = bytearray(24)
    decoded = get_codec("float32").decode(data, (2, 3))
    decoded[0, 0] = 1.0
    assert data[:4] == np.float32(1).tobytes()


def test_a_read_only_or_unaligned_buffer_is_copied_and_the_result_is_writable() -> None:
    data = np.arange(3, dtype=np.float32).tobytes()
    unaligned = memoryview(bytearray(b"x" + data))[1:]
    for buffer in (data, unaligned):
        decoded = get_codec("float32").decode(buffer, (3,))
        decoded += 1
        assert decoded.tolist() == [1, 2, 3]
    assert bytes(unaligned) == data


def test_int8_by_hand() -> None:
    # Channel 0: amax 127, scale 1. Channel 1: amax 254, scale 2. Channel 2: zeros, scale 0.
    tensor = torch.tensor([[127.0, -254.0, 0.0], [-3.4, 5.2, 0.0]])
    data = wire(tensor, "int8")
    assert np.frombuffer(data[:12], "<f4").tolist() == [1.0, 2.0, 0.0]
    assert np.frombuffer(data[12:], np.int8).tolist() == [127, -127, 0, -3, 3, 0]
    assert wire_roundtrip(tensor, "int8").tolist() == [[127.0, -254.0, 0.0], [-3.0, 6.0, 0.0]]


def test_int8_error_is_at_most_half_a_scale_per_channel() -> None:
    tensor = torch.randn(5000, 8, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 8)
    error = (wire_roundtrip(tensor, "int8") - tensor).abs().amax(0)
    bound = tensor.abs().amax(0) / 254
    assert bool((error <= bound * (1 + 1e-5)).all())
    assert bool((error > bound / 2).all()), "the codec is lossy: a test that cannot see it proves nothing"


def test_int8_handles_a_channel_whose_scale_underflows() -> None:
    assert wire_roundtrip(torch.tensor([[1e-45, 1.0]]), "int8").tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*NAMES, "code2", "code5"])
def test_what_is_not_finite_is_refused_or_stays_so(name: str, value: float) -> None:
    """A codec that saturated would make a training that has diverged look sound."""
    tensor, codec = torch.ones(4, 3), get_codec(name)
    tensor[2, 1] = value
    with contextlib.suppress(TrainingError):
        decoded = codec.decode(b"".join(codec.encode(tensor)), tensor.shape)
        assert not torch.isfinite(decoded[2, 1])


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_int8_refuses_a_scale_that_no_encoder_makes(scale: float) -> None:
    data = np.float32(scale).tobytes() + b"\x01"
    with pytest.raises(FrameMismatch, match="scale"):
        get_codec("int8").decode(data, (1, 1))


@pytest.mark.parametrize("name", [*NAMES, "code2", "code5"])
def test_a_codec_keeps_the_values_that_it_promises_to_keep(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    # Three Uppers whose smashed data differ in size, and one that is absent.
    sent = [wire_roundtrip(torch.randn(8, 1, 3, 3, 4, generator=generator) * size, name) for size in (0.01, 1, 7)]
    joined = torch.cat([*sent, torch.zeros_like(sent[0])], dim=1)
    assert torch.equal(wire_roundtrip(joined, name), joined) or not get_codec(name).keeps_values_when_joined
    samples = [part[b : b + 1] for part in sent for b in range(8)]
    kept = all(torch.equal(wire_roundtrip(sample, name), sample) for sample in samples)
    assert kept or not get_codec(name).keeps_values_by_sample


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_wrong_length_is_refused(name: str, extra: int) -> None:
    with pytest.raises(FrameMismatch, match="expected"):
        get_codec(name).decode(bytes(get_codec(name).nbytes((2, 3)) + extra), (2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_gradient_graph_do_not_matter(name: str) -> None:
    tensor = torch.randn(3, 4, 5, requires_grad=True)
    assert wire(tensor.transpose(0, 2), name) == wire(tensor.detach().transpose(0, 2).contiguous(), name)
    assert not wire_roundtrip(tensor, name).requires_grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_other_dtypes_are_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(FrameMismatch, match="expected float32"):
        get_codec(name).encode(torch.ones(2, dtype=dtype))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="float32, bfloat16, float16, int8"):
        get_codec("float64")
