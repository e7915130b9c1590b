"""Images as they are stored: every mode and depth, what is said of it, broken files, and the size they are brought to."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.images import resize_image
from psl_flower.data.pixels import Decoder
from psl_flower.data.sources import open_dataset
from psl_flower.errors import ConfigError, CorruptImage, DataError
from tests.unit.tiny_pictures import colour, encode

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(np.full((2, 3), 9, np.uint8)), [9]),
        (encode(np.full((2, 3), 255, np.uint8), "1"), [255]),
        (encode(np.full((2, 3), 9, np.uint8), "LA"), [9]),
        (encode(np.full((2, 3), 0x1234, np.uint16)), [0x12]),
        (encode(np.full((2, 3), 0x1234, np.uint16), kind="TIFF"), [0x12]),
        (encode(np.full((2, 3, 3), (1, 2, 3), np.uint8)), [1, 2, 3]),
        (encode(np.full((2, 3, 4), (1, 2, 3, 255), np.uint8)), [1, 2, 3]),
        (encode(np.full((2, 3, 3), (1, 2, 3), np.uint8), "P"), None),
        (encode(np.full((2, 3, 3), (255, 0, 255), np.uint8), "CMYK", "TIFF"), [255, 0, 255]),
    ],
    ids=["L", "1", "LA", "16 bit", "16 bit tiff", "RGB", "RGBA", "P", "CMYK"],
)
def test_modes(encoded, expected):
    image = Decoder().file(encoded, "here")
    assert image.dtype == np.uint8 and image.shape == (2, 3, len(expected or [1, 2, 3]))
    if expected:
        np.testing.assert_array_equal(image, np.full_like(image, expected))


def test_exif_orientation_is_applied():
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Decoder().file(encode(pixels, exif=exif), "here")
    np.testing.assert_array_equal(image[:, :, 0], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "encoded",
    [b"", b"nonsense", encode(NOISE)[:-40], encode(colour(1), kind="JPEG")[:200], encode(colour(1))[:20]],
    ids=["empty", "no image", "cut png", "cut jpeg", "header only"],
)
def test_broken_images(encoded):
    with pytest.raises(CorruptImage, match="image 3 of split 'test': (is empty; replace|cannot be decoded)"):
        Decoder().file(encoded, "image 3 of split 'test'")


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating point"):
        Decoder().file(encode(np.zeros((2, 2), np.float32), kind="TIFF"), "here")


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_covers_and_crops_the_centre(channels):
    image = np.zeros((8, 16, channels), np.uint8)
    image[:, 4:12] = 200
    resized = resize_image(image, (4, 4))
    assert resized.shape == (4, 4, channels)
    np.testing.assert_array_equal(resized[:, 1:3], 200)
    assert resize_image(image, (8, 16)) is image
    assert resize_image(image, (3, 31)).shape == (3, 31, channels)


# --- orientation and other metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_that_of_pillow(orientation, kind):
    from PIL import ImageOps

    pixels = np.random.default_rng(orientation).integers(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(pixels, kind=kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    image = Decoder().file(encoded, "here")
    np.testing.assert_array_equal(image, np.asarray(expected))
    assert image.flags.c_contiguous


def exif_of(orientation, rational=b""):
    """Return EXIF data of a camera: an orientation, and a resolution that points beyond the data or divides by 0."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack("<HHII", 0x011A, 5, 1, 38)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0) + rational


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(encoded, added):
    """Return a PNG with a chunk after its header."""
    return encoded[:33] + added + encoded[33:]


GREY = encode(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
BROKEN_METADATA = {
    "rational by zero": (
        encode(np.zeros((3, 4, 3), np.uint8), kind="JPEG", exif=exif_of(6, struct.pack("<II", 1, 0))),
        (4, 3),
    ),
    "rational beyond the end": (encode(np.zeros((3, 4, 3), np.uint8), kind="JPEG", exif=exif_of(6)), (4, 3)),
    "no exif at all": (encode(np.zeros((3, 4, 3), np.uint8), kind="JPEG", exif=b"Exif\0\0nonsense"), (3, 4)),
    "text of a bomb": (with_chunk(GREY, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20)))), (3, 4)),
    "text that is cut": (with_chunk(GREY, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100))[:9])), (3, 4)),
    "text with a wrong sum": (with_chunk(GREY, chunk(b"tEXt", b"a\0b")[:-1] + b"\0"), (3, 4)),
    "profile that is cut": (with_chunk(GREY, chunk(b"iCCP", b"icc\0\0" + b"x")), (3, 4)),
}


@pytest.mark.parametrize(("encoded", "size"), BROKEN_METADATA.values(), ids=BROKEN_METADATA)
def test_broken_metadata_spoil_no_image(encoded, size):
    assert BROKEN_METADATA
    decoder = Decoder()
    image = decoder.file(encoded, "here")
    assert image.shape[:2] == size
    if encoded.startswith(GREY[:33]):
        np.testing.assert_array_equal(image[:, :, 0], np.arange(12).reshape(3, 4) * 20)
    assert set(decoder.notes.sentences()) <= {
        "1 image, such as here: broken metadata were ignored, an orientation in them too"
    }


def test_broken_metadata_are_noted_and_broken_pixels_refused():
    decoder = Decoder()
    decoder.file(BROKEN_METADATA["text with a wrong sum"][0], "first")
    assert decoder.notes.sentences() == (
        "1 image, such as first: broken metadata were ignored, an orientation in them too",
    )
    cut = BROKEN_METADATA["text with a wrong sum"][0][:-30]
    with pytest.raises(CorruptImage, match="here: cannot be decoded"):
        decoder.file(cut, "here")
    decoder.file(GREY, "third")
    assert len(decoder.notes.sentences()) == 1


# --- transparency


def transparent(mode, size=(4, 4)):
    """Return a black picture whose left half is transparent, as PNG."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    file = io.BytesIO()
    if mode == "tRNS":
        picture = Image.new("L", size, 7)
        picture.paste(0, (0, 0, size[0] // 2, size[1]))
        picture.save(file, "PNG", transparency=0)
    elif mode == "P":
        image.quantize(8).save(file, "PNG")
    else:
        image.convert(mode).save(file, "GIF" if mode == "GIF" else "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS"])
@pytest.mark.parametrize(("background", "grey"), [("white", 255), ("black", 0), ("#808080", 128)])
def test_transparent_pixels_are_put_on_the_background_and_noted_once(mode, background, grey):
    decoder = Decoder(background=background)
    for name in ("one", "two"):
        image = decoder.file(transparent(mode), name)
        assert image.shape[2] == (1 if mode in ("LA", "tRNS") else 3)
        assert set(image[:, :2].ravel().tolist()) == {grey}
        assert image[:, 2:].max() <= 7
    assert decoder.notes.sentences() == (f"2 images, such as one: transparent pixels were put on {background}",)


def test_half_transparent_pixels_are_mixed_and_opaque_ones_taken_as_they_are():
    decoder = Decoder()
    image = decoder.file(encode(np.full((2, 2, 4), (0, 0, 0, 127), np.uint8)), "here")
    assert set(image.ravel().tolist()) == {128}
    quiet = Decoder()
    image = quiet.file(encode(np.full((2, 2, 4), (9, 8, 7, 255), np.uint8)), "here")
    np.testing.assert_array_equal(image, np.full((2, 2, 3), (9, 8, 7)))
    assert quiet.notes.sentences() == ()
    with pytest.raises(ConfigError, match="background: expected white"):
        Decoder(background="clear")


# --- depth


def tiff(values, bits, sample_format, photometric=1):
    """Return an uncompressed TIFF of grey values (H, W), or colours (H, W, 3), as a scientific camera writes it."""
    height, width, channels = (*values.shape, 1)[:3]
    data = values.tobytes()
    sizes, formats = ([bits] * channels, [sample_format] * channels)
    tags = [(256, [width]), (257, [height]), (258, sizes), (259, [1]), (262, [2 if channels == 3 else photometric]), (273, None),
            (277, [channels]), (278, [height]), (279, [len(data)]), (339, formats)]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    extra = b"".join(struct.pack(f"<{len(v)}H", *v) for _, v in tags if v and len(v) > 2)
    entries, place = b"", after
    for tag, numbers in tags:
        if numbers is None:
            entries += struct.pack("<HHII", tag, 4, 1, after + len(extra))
        elif len(numbers) > 2:
            entries += struct.pack("<HHII", tag, 3, len(numbers), place)
            place += 2 * len(numbers)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, numbers[0])
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + extra + data


def png_16(values, hidden=b""):
    """Return a PNG of 16 bits a channel; `hidden` is the one value, or colour, that it calls transparent."""
    height, width, channels = (*values.shape, 1)[:3]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", hidden) if hidden else b"")
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


UNKNOWN_RANGE = [
    (tiff(np.full((2, 2), -100, "<i2"), 16, 2), "signed pixels"),
    (tiff(np.full((2, 2), -3, "i1"), 8, 2), "signed pixels"),
    (tiff(np.full((2, 2), 4_000_000_000, "<u4"), 32, 1), "32-bit pixels"),
    (tiff(np.full((2, 2), 70_000, "<i4"), 32, 2), "signed pixels"),
    (tiff(np.full((2, 2), 0.5, "<f4"), 32, 3), "floating point pixels"),
]


@pytest.mark.parametrize(("encoded", "match"), UNKNOWN_RANGE)
def test_pixels_whose_white_nobody_knows_are_refused(encoded, match):
    assert UNKNOWN_RANGE
    with pytest.raises(DataError, match=rf"here: {match}.*pixel-range"):
        Decoder().file(encoded, "here")


MAPPED = [
    ("0..4095", tiff(np.array([[0, 2048, 4095]], "<u2"), 16, 1), [0, 128, 255]),
    ("-1024..3071", tiff(np.array([[-1024, 1024, 3071]], "<i2"), 16, 2), [0, 128, 255]),
    ("0..4294967295", tiff(np.array([[0, 2**31, 2**32 - 1]], "<u4"), 32, 1), [0, 128, 255]),
    ("-128..127", tiff(np.array([[-128, 0, 127]], "i1"), 8, 2), [0, 128, 255]),
    ("0.0..1.0", tiff(np.array([[0, 0.5, 1]], "<f4"), 32, 3), [0, 128, 255]),
    ("0..4095", png_16(np.array([[0, 2048, 4095]])), [0, 128, 255]),
]


@pytest.mark.parametrize(("pixel_range", "encoded", "expected"), MAPPED)
def test_a_stated_range_becomes_black_and_white(pixel_range, encoded, expected):
    assert MAPPED
    decoder = Decoder(pixel_range)
    image = decoder.file(encoded, "here")
    assert image.ravel().tolist() == expected
    (note,) = decoder.notes.sentences()
    assert "became 0..255" in note


def test_pixels_outside_a_stated_range_are_said_and_8_bits_left_alone():
    decoder = Decoder("10..20")
    image = decoder.file(tiff(np.array([[0, 15, 99]], "<u2"), 16, 1), "here")
    assert image.ravel().tolist() == [0, 128, 255]
    assert any("outside pixel-range became black or white" in note for note in decoder.notes.sentences())
    np.testing.assert_array_equal(decoder.file(GREY, "here"), Decoder().file(GREY, "here"))
    with pytest.raises(DataError, match="no numbers"):
        decoder.file(tiff(np.array([[np.nan, 15]], "<f4"), 32, 3), "here")
    with pytest.raises(DataError, match="pixel-range cannot map colours of 16 bits"):
        decoder.file(png_16(np.full((2, 2, 3), 4095)), "here")


def deep_folder(root, contents, ending=".png"):
    for k, content in enumerate(contents):
        place = root / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k}{ending}").write_bytes(content)
    return str(root)


@pytest.mark.parametrize("make", [png_16, lambda v: tiff(v.astype("<u2"), 16, 1)], ids=["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_stored_in_sixteen_are_refused_unless_the_range_is_stated(tmp_path, make, channels):
    shape = (4, 4) if channels == 1 else (4, 4, 3)
    name = deep_folder(tmp_path / "set", [make(np.full(shape, 4095 - k)) for k in range(10)])
    remedy = "pixel-range=dataset.*pixel-range=0..65535" if channels == 1 else "convert these images to 8 bits"
    match = rf"is nearly black \(10 of 10 images looked at\): .*above 15 of 255.*{remedy}"
    with pytest.raises(DataError, match=match):
        list(open_dataset(name).samples("train"))
    if channels == 1:
        source = open_dataset(name, pixel_range="dataset")
        levels = {int(image.max()) for split in ("train", "test") for image, _ in source.samples(split)}
        assert max(levels) == 255 and min(levels) >= 254
        assert source.account().pixel_range == (0.0, 4095.0)


def test_sixteen_bits_that_use_their_range_are_halved_and_said(tmp_path):
    name = deep_folder(tmp_path / "set", [png_16(np.full((4, 4), 6553 * k)) for k in range(10)])
    source = open_dataset(name, test_fraction=0.2)
    levels = sorted(int(image.max()) for split in ("train", "test") for image, _ in source.samples(split))
    assert levels == [6553 * k >> 8 for k in range(10)]
    note, dark = sorted(source.account().notes)
    assert "10 images" in note and "0..65535 became 0..255" in note
    assert "3 images" in dark and "no pixel is above a quarter" in dark
    colours = deep_folder(tmp_path / "colours", [png_16(np.full((4, 4, 3), 6553 * k)) for k in range(10)])
    source = open_dataset(colours)
    list(source.samples("train"))
    assert any("of 16-bit colours the upper 8 bits were taken" in note for note in source.account().notes)


def test_the_range_of_a_dataset_is_that_of_all_its_images(tmp_path):
    values = [tiff(np.full((4, 4), 300 * k - 1000, "<i2"), 16, 2) for k in range(10)]
    name = deep_folder(tmp_path / "set", values, ".tif")
    for max_train in (0, 6):
        source = open_dataset(name, pixel_range="dataset", max_train=max_train)
        list(source.samples("train"))
        low, high = source.account().pixel_range
        assert -1000 <= low < 0 < high <= 1700
    whole = open_dataset(name, pixel_range="dataset")
    levels = sorted(int(image.max()) for split in ("train", "test") for image, _ in whole.samples(split))
    assert levels == [round(255 * 300 * k / 2700) for k in range(10)]
    black = deep_folder(tmp_path / "black", [tiff(np.zeros((4, 4), "<i2"), 16, 2)] * 10, ".tif")
    with pytest.raises(DataError, match="no pixel of the dataset is above 0"):
        list(open_dataset(black, pixel_range="dataset").samples("train"))


def test_where_white_is_zero_16_bits_are_inverted_as_8_are():
    levels = np.array([[0, 64, 128, 191, 255]])
    shallow = Decoder().file(tiff(levels.astype("u1"), 8, 1, photometric=0), "here")
    decoder = Decoder()
    deep = decoder.file(tiff((levels * 257).astype("<u2"), 16, 1, photometric=0), "here")
    np.testing.assert_array_equal(deep, shallow)
    assert deep.ravel().tolist() == [255, 191, 127, 64, 0]
    assert "65535..0 became 0..255" in decoder.notes.sentences()[0]
    ranged = Decoder("0..4095")
    image = ranged.file(tiff(np.array([[0, 2048, 4095]], "<u2"), 16, 1, photometric=0), "here")
    assert image.ravel().tolist() == [255, 127, 0]
    assert "pixel values 4095..0 became 0..255" in ranged.notes.sentences()[0]


def test_the_hidden_value_of_16_bit_grey_is_put_on_the_background(tmp_path):
    values = np.array([[500, 65535], [40000, 500]])
    decoder = Decoder(background="#808080")
    image = decoder.file(png_16(values, struct.pack(">H", 500)), "here")
    assert image.ravel().tolist() == [128, 255, 156, 128]
    assert any("transparent pixels were put on #808080" in note for note in decoder.notes.sentences())
    quiet = Decoder()
    assert quiet.file(png_16(values, struct.pack(">H", 501)), "here").ravel().tolist() == [1, 255, 156, 1]
    assert not any("transparent" in note for note in quiet.notes.sentences())
    # What is hidden makes no dataset bright.
    dark = [png_16(np.array([[65535, 4000 - k]]), b"\xff\xff") for k in range(10)]
    with pytest.raises(DataError, match="nearly black"):
        list(open_dataset(deep_folder(tmp_path / "set", dark)).samples("train"))
    with pytest.raises(DataError, match="one of its 16-bit colours transparent; convert it"):
        Decoder().file(png_16(np.full((2, 2, 3), 4095), struct.pack(">HHH", 4095, 4095, 4095)), "here")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_hidden_value_of_a_png_of_few_bits_is_put_on_the_background(bits):
    top = 2**bits - 1
    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    row = b"\0" + (bytes([top << (8 - bits)]))  # the highest value, and zeros after it
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", top))
    encoded = start + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    image = Decoder(background="#808080").file(encoded, "here")
    assert image.ravel().tolist() == [128, *[0] * (8 // bits - 1)]


@pytest.mark.parametrize(("bright", "refused"), [(1, True), (40, True), (61, False), (119, False)])
def test_a_few_bright_images_do_not_vouch_for_the_dark_ones(tmp_path, bright, refused):
    values = [60000] * bright + [4000] * (120 - bright)
    name = deep_folder(tmp_path / "set", [png_16(np.full((2, 2), value)) for value in values])
    source = open_dataset(name, test_fraction=0.5)
    if refused:
        with pytest.raises(DataError, match=r"nearly black \(\d+ of \d+ images looked at\)"):
            [list(source.samples(split)) for split in ("train", "test")]
        assert open_dataset(name, pixel_range="0..65535").account()
        return
    [list(source.samples(split)) for split in ("train", "test")]
    (note,) = (note for note in source.account().notes if "no pixel is above a quarter" in note)
    assert note.startswith(f"{120 - bright} image")


def test_an_image_of_pillow_is_decoded_alike():
    decoder = Decoder()
    image = decoder.image(Image.open(io.BytesIO(transparent("RGBA"))), "here")
    np.testing.assert_array_equal(image, Decoder().file(transparent("RGBA"), "here"))
