"""The codec of codes: whole bits packed, exact for codes, strict about every bit that it reads."""

import math

import pytest
import torch

from psl_flower.errors import ConfigError, FrameMismatch, TrainingError
from psl_flower.wire.codecs import from_levels, get_codec, to_levels, wire_roundtrip

LEVELS = [2, 3, 4, 5, 16, 17, 255, 256]
SHAPES = [(), (0,), (0, 3), (3, 0), (7,), (2, 1, 1, 1, 5)]


def wire(tensor: torch.Tensor, name: str) -> bytes:
    return b"".join(get_codec(name).encode(tensor))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back_exactly_in_the_bits_they_have(levels: int, shape: tuple[int, ...]) -> None:
    codec = get_codec(f"code{levels}")
    drawn = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(levels), dtype=torch.uint8)
    codes = from_levels(drawn, levels)
    data = wire(codes, codec.name)
    assert len(data) == codec.nbytes(shape) == -(-math.prod(shape) * math.ceil(math.log2(levels)) // 8)
    assert torch.equal(codec.decode(data, shape), codes)
    assert torch.equal(to_levels(codes, levels), drawn)
    for dtype in (torch.float16, torch.bfloat16):
        # What a network in half precision computes is told apart as well.
        assert torch.equal(codec.decode(wire(codes.to(dtype), codec.name), shape, dtype), codes.to(dtype))


def test_sixty_four_signs_are_eight_bytes_by_hand() -> None:
    signs = torch.tensor([1.0, -1, -1, -1, -1, -1, -1, 1] + [-1.0] * 48 + [1.0] * 8)
    assert wire(signs, "code2") == bytes([0b10000001, 0, 0, 0, 0, 0, 0, 255])
    # Three levels take two bits: 00, 01, 10, and zeros to the end of the byte.
    assert wire(torch.tensor([-1.0, 0.0, 1.0]), "code3") == bytes([0b00011000])


@pytest.mark.parametrize("levels", LEVELS)
def test_other_numbers_become_the_nearest_level(levels: int) -> None:
    tensor = torch.linspace(-1.5, 1.5, 1001)
    back = wire_roundtrip(tensor, f"code{levels}")
    assert torch.equal(back, get_codec(f"code{levels}").decode(wire(tensor, f"code{levels}"), (1001,)))
    assert (back - tensor.clamp(-1, 1)).abs().max() <= 1 / (levels - 1) + 1e-6
    assert (back.min(), back.max()) == (-1, 1)
    assert len(back.unique()) == levels


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        wire(torch.tensor([0.0, value]), "code4")


BAD_BITS = [
    ("code3", b"\xff", (1,)),
    ("code5", bytes([0b10100000]), (1,)),
    ("code2", b"\x01", (7,)),
    ("code4", b"\x0f", (2,)),
]


@pytest.mark.parametrize(("name", "data", "shape"), BAD_BITS)
def test_bits_that_no_encoder_makes_are_refused(name: str, data: bytes, shape: tuple[int, ...]) -> None:
    assert BAD_BITS
    with pytest.raises(FrameMismatch, match=f"{name} tensor: bits that stand for none"):
        get_codec(name).decode(data, shape)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_wrong_length_is_refused(extra: int) -> None:
    with pytest.raises(FrameMismatch, match="expected 3 bytes"):
        get_codec("code16").decode(bytes(3 + extra), (2, 3))


@pytest.mark.parametrize(
    "name", ["code", "code1", "code0", "code02", "code257", "code999", "code-2", "code2 ", "Code2"]
)
def test_other_names_are_no_codecs(name: str) -> None:
    with pytest.raises(ConfigError, match="code2 to code256"):
        get_codec(name)
