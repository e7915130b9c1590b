"""The command `psl inspect`: what would be read of a dataset, before anything is sealed."""

from __future__ import annotations

import json
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from psl_flower.cli.output import Json, say
from psl_flower.cli.progress import Progress
from psl_flower.cli.reading import ReadingSettings, given_settings
from psl_flower.data.copies import no_copies_kept
from psl_flower.errors import ConfigError
from psl_flower.text import counted, dims

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from PIL import Image

    from psl_flower.config.fields import Size
    from psl_flower.data.sources import DecodedSample, ImageSource

_CLASSES, _PER_CLASS = 40, (6, 4)
_SHOWN = 10


@no_copies_kept()
def inspect(
    dataset: Annotated[str, typer.Argument(help="Hub name, local folder, or digits.")],
    settings: ReadingSettings = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Contact sheet to write [inspect-DATASET.png].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that --out names if it exists.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Decode every image, not only those of the sheet.")] = False,
    as_json: Json = False,
) -> None:
    """Show which images of a dataset would be read, by split and class, and which are left out and why. Seals nothing.

    Writes a contact sheet, a row of images for each class: look at it before you seal images and give them away.
    """
    from psl_flower.data.options import SourceOptions
    from psl_flower.data.sources import open_dataset
    from psl_flower.stores.sealed_set import is_sealed_dataset
    from psl_flower.system.files import write_file

    if is_sealed_dataset(dataset):
        raise ConfigError(f"{dataset}: holds sealed stores, whose images only restorers see; see psl verify")
    target = out or Path(f"inspect-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(dataset).name) or 'dataset'}.png")
    if out is not None and out.exists() and not force:
        raise ConfigError(f"{out} exists already; name a new file with --out, or replace it with --force")
    given = given_settings(settings or (), also=("image_size",))
    size = given.pop("image_size", (0, 0))
    source = open_dataset(dataset, SourceOptions(**given))
    samples = _some_of_each_class(source)
    sheet = BytesIO()
    _draw(source, samples, size).save(sheet, "PNG")
    write_file(target, sheet.getvalue(), mode=0o666, durable=False)  # less what the umask takes away
    with Progress(enabled=every and not as_json) as progress:
        sizes, firsts, problems = _sizes_of(_every_one(source, progress) if every else samples)
    account = source.account()
    if as_json:
        report = {
            "account": msgspec.to_builtins(account),
            "decoded": sum(sizes.values()),
            "sizes": dict(sizes.most_common()),
            "problems": problems,
            "sheet": str(target),
        }
        typer.echo(json.dumps(report))
    else:
        examples = {shape: source.where(sample.split, sample.number) for shape, sample in firsts.items()}
        for line in (*account.lines(), *_about_sizes(sizes, examples, every, size), f"contact sheet: {target}"):
            say(line)
    for line in _about_problems(problems):
        say(f"error: {line}", err=True)
    if problems:
        raise typer.Exit(1)


def _sizes_of(samples: Iterable[DecodedSample]) -> tuple[Counter[str], dict[str, DecodedSample], list[str]]:
    """Return the number of images by size, the first of each size, and the problems of those not decoded."""
    sizes, problems = Counter[str](), list[str]()
    firsts: dict[str, DecodedSample] = {}
    for sample in samples:
        if sample.image_HWC is None:
            problems.append(sample.problem)
        else:
            shape = dims(sample.image_HWC.shape)
            sizes[shape] += 1
            firsts.setdefault(shape, sample)
    return sizes, firsts, problems


def _kind_of(problem: str) -> str:
    """Return a problem without what names its image."""
    from psl_flower.data.image_folder import LEAVE_OUT_WAY

    return problem.partition(": ")[2].partition(LEAVE_OUT_WAY)[0]


def _about_problems(problems: list[str]) -> Iterator[str]:
    """Yield each fault once, with the first image that has it and the number of others."""
    by_kind = Counter(map(_kind_of, problems))
    first = {_kind_of(problem): problem for problem in reversed(problems)}
    for what, count in by_kind.most_common(_SHOWN):
        yield first[what] + (f" (and {counted(count - 1, 'other image')})" if count > 1 else "")


def _about_sizes(sizes: Counter[str], examples: Mapping[str, str], every: bool, asked: Size) -> Iterator[str]:
    """Yield lines about images by size, "HxWxC"; `examples` names one of each, `asked` is the one for all."""
    shown = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(_SHOWN))
    more = f" and {len(sizes) - _SHOWN} other sizes" if len(sizes) > _SHOWN else ""
    yield f"decoded: {shown}{more}" + ("" if every else " (--all decodes every image)")
    from psl_flower.config import size_text

    by_size, by_channels = ({size.rpartition("x")[part]: size for size in sizes} for part in (0, 2))
    if asked != (0, 0):
        yield f"image-size={size_text(asked)} brings all of them to one size, as the contact sheet shows"
    elif len(by_size) > 1:
        yield f"the images differ in size ({_two(by_size, examples)}): image-size brings all of them to one"
    if len(by_channels) > 1:
        two = _two(by_channels, examples)
        yield f"some images are grey and some are not ({two}): convert all of them to grey or to RGB"


def _two(kinds: Mapping[str, str], examples: Mapping[str, str]) -> str:
    """Return an image of each of the first two kinds, with its size."""
    return ", ".join(f"{examples[size]} is {size}" for size in list(kinds.values())[:2])


def _some_of_each_class(source: ImageSource) -> list[DecodedSample]:
    """Return some images of each class, evenly spaced over each split; of very many classes, of some of these."""
    from psl_flower.seeds import evenly_spaced

    samples: list[DecodedSample] = []
    for label in evenly_spaced(len(source.class_names), _CLASSES).tolist():
        for split, most in zip(("train", "test"), _PER_CLASS, strict=True):
            places = source.places_of(split, label)
            chosen = evenly_spaced(len(places), most)
            samples += source.decoded(split, places[chosen].tolist())
    return samples


def _draw(source: ImageSource, samples: list[DecodedSample], size: Size) -> Image.Image:
    """Return the contact sheet; images as they would be sealed where one size is asked for."""
    from PIL import Image

    from psl_flower.data.images import resize_image
    from psl_flower.data.sheet import sheet, tile, to_picture

    by_class: dict[int, list[Image.Image]] = {}
    for sample in samples:
        image_HWC = sample.image_HWC
        if image_HWC is not None and size != (0, 0):
            image_HWC = resize_image(image_HWC, size)
        picture = None if image_HWC is None else to_picture(image_HWC.transpose(2, 0, 1))
        lines = [f"{sample.label} {source.class_names[sample.label]}", f"{sample.split}:{sample.number}"]
        lines += ["not decoded"] if sample.problem else []
        by_class.setdefault(sample.label, []).append(tile(picture, lines))
    columns = sum(_PER_CLASS)
    blank = Image.new("RGB", next(iter(by_class.values()))[0].size, "white")
    return sheet([one for row in by_class.values() for one in row + [blank] * (columns - len(row))], columns)


def _every_one(source: ImageSource, progress: Progress) -> Iterator[DecodedSample]:
    for split in ("train", "test"):
        total = source.num_samples(split)
        for sample in source.decoded(split, range(total)):
            yield sample
            progress.steps(f"{split} images", sample.number + 1, total)
