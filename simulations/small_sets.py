"""Small sets of images as users have them: drawn from CIFAR-10 or from fonts, or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psl_flower.data.sources import open_dataset
from psl_flower.errors import ConfigError

# Three kinds of photograph among the classes of CIFAR-10: airplanes, cats and ships.
_THREE = (0, 3, 8)
_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789abdefghn"
_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
)  # fmt: skip
_LARGE, DIGITS = 224, 400
# Images of a set with their classes.
Set = Iterator[tuple[Image.Image, int]]


def _cifar(dataset: str, counts: Sequence[tuple[int, int]], side: int) -> Set:
    """Yield the first images of these (class, number), scaled."""
    left = dict(counts)
    for image, label in open_dataset(dataset).samples("train"):
        if left.get(label, 0):
            left[label] -= 1
            yield Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), label
        if not any(left.values()):
            return


def _glyphs(_: str, side: int) -> Set:
    """Yield each of 40 characters in 10 fonts, grey, a little moved and turned."""
    from matplotlib import get_data_path

    random = np.random.default_rng(0)
    for font in _FONTS:
        face = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{font}.ttf", side * 3 // 4)
        for k, character in enumerate(_CHARACTERS):
            image = Image.new("L", (side, side), 255)
            place = tuple(side / 2 + random.integers(-1, 2, 2))
            ImageDraw.Draw(image).text(place, character, 0, face, anchor="mm")
            yield image.rotate(float(random.uniform(-8, 8)), fillcolor=255, resample=Image.Resampling.BILINEAR), k


# By name: what it is, and its images given CIFAR-10 and a side in pixels; None if it is embedded.
SETS: dict[str, tuple[str, Callable[[str, int], Set] | None]] = {
    "three": (
        "3 kinds of photograph, 60 of each",
        lambda dataset, side: _cifar(dataset, [(k, 60) for k in _THREE], side),
    ),
    "ten": (
        "10 kinds of photograph, 50 of each",
        lambda dataset, side: _cifar(dataset, [(k, 50) for k in range(10)], side),
    ),
    "rare": (
        "3 kinds of photograph: 200, 60, 20",
        lambda dataset, side: _cifar(dataset, [(0, 200), (3, 60), (8, 20)], side),
    ),
    "glyphs": ("40 grey characters in 10 fonts", _glyphs),
    "digits": (f"{DIGITS} of the embedded digits", None),
    "large": (
        f"3 kinds of photograph, 40 of each, scaled to {_LARGE} pixels",
        lambda dataset, side: _cifar(dataset, [(k, 40) for k in _THREE], _LARGE),
    ),
}


# Folders of images that others publish, by their names.
_PUBLISHED = {
    "orl_faces": "40 people, 10 grey faces of each (Olivetti Research Laboratory)",
    "hymenoptera_data": "ants and bees, photographs of many sizes (PyTorch's tutorial on transfer learning)",
}


def set_or_folder(text: str) -> str:
    """Check the name of a set, or the path of a folder with a folder for each class.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if text not in SETS and not Path(text).is_dir():
        raise ConfigError(f"expected some of {','.join(SETS)}, or folders of images, got {text!r}")
    return text


def about(data: str) -> str:
    """Return what is in a set, or in the folder of this path."""
    name = Path(data).name
    return SETS[data][0] if data in SETS else _PUBLISHED.get(name, f"the folder {name}")


def images_of(data: str, dataset: str, side: int) -> Set | None:
    """Return the images of a set, None if it is embedded, or of a folder, scaled to `side` pixels a side."""
    if data not in SETS:
        return _scaled(data, side)
    make = SETS[data][1]
    return make and make(dataset, side)


def _scaled(folder: str, side: int) -> Set:
    for image, label in open_dataset(folder).samples("train"):
        yield Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.BICUBIC), label


def write_folder(folder: Path, images: Set) -> int:
    """Write images as PNG files into a folder for each class; return their number."""
    count = 0
    for count, (image, k) in enumerate(images, start=1):
        place = folder / f"class-{k}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{count:05d}.png")
    return count
