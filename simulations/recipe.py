"""Batch, learning rate and steps for sets as users have them, on validation images; `python -m simulations.recipe`."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from psl_flower.config import RunConfig, fields
from psl_flower.config.fields import setting
from psl_flower.config.training import CLASS_WEIGHTS
from psl_flower.data.sources import open_dataset
from psl_flower.engine.automatic_settings import MOST_BATCH, batch_for, split_training, steps_per_epoch
from psl_flower.engine.batches import batch_order
from psl_flower.engine.classification_scores import scores
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.store_set import StoreSet, store_request
from simulations import kept
from simulations.kept import Study
from simulations.options import number, one_of, several
from simulations.reports import Cells, Row

# What a run trained with before: 3 epochs of mini-batches of 64 at 0.05.
BEFORE = {"rounds": 3, "batch_size": 64, "lr": 0.05}
_VALID = 0.25
# Three kinds of photograph among the classes of CIFAR-10: airplanes, cats and ships.
_THREE = (0, 3, 8)
_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789abdefghn"
_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
)  # fmt: skip
_LARGE, _DIGITS = 224, 400
_SETS = ("three", "ten", "rare", "glyphs", "digits", "large")
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


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What to try."""

    dataset: str = setting("uoft-cs/cifar10", "CIFAR-10: a hub name, or a folder of it")
    sets: tuple[str, ...] = several(_SETS, "sets of images", one_of(_SETS))
    steps: tuple[float, ...] = several((100.0, 200.0), "steps to train for, rounded up to whole epochs", number)
    lrs: tuple[float, ...] = several(
        (0.05, 0.2), "peak learning rates for a batch of 64, less for smaller ones", number
    )
    class_weights: tuple[str, ...] = several(("none",), "class weights in the loss", one_of(CLASS_WEIGHTS))
    side: int = setting(32, "height and width of small images, in pixels", least=8)


# By name: what it is, and its images given CIFAR-10 and a side in pixels; None where it is embedded.
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
    "digits": (f"{_DIGITS} of the embedded digits", None),
    "large": (
        f"3 kinds of photograph, 40 of each, scaled to {_LARGE} pixels",
        lambda dataset, side: _cifar(dataset, [(k, 40) for k in _THREE], _LARGE),
    ),
}


_NOTED = {"before": ", as before", "batch by images, class weights": ", with class weights"}


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One training of a new network, judged by the quarter of the training images that it did not see."""

    data: str
    recipe: str  #: "before", "batch by images", or "batch by images, class weights".
    #: Training images, classes, and height and width of images in pixels.
    images: int
    classes: int
    side: int
    #: Images in a mini-batch, and steps.
    batch_size: int
    steps: int
    lr: float  #: Peak learning rate of the one-cycle schedule.
    #: On the validation images, 0..1; the last is what always answering the most frequent class would give.
    accuracy: float
    balanced_accuracy: float
    majority: float
    at_chance: bool  #: As `psl_flower.engine.classification_scores.Scores.at_chance`.
    #: Mean cross entropy of the validation images; time of the training.
    loss: float
    seconds: float


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: every training."""

    benchmark: str = "recipe"
    version: int = 1
    settings: Options
    measurements: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        return f"Small sets of images, trained from nothing by several recipes; one thread of {self.place}"

    @property
    def tables(self) -> tuple[Cells, ...]:
        """Every training, by set."""
        head = ("images", "trained on", "batch", "lr", "steps", "balanced accuracy, %", "accuracy, %", "majority, %",
                "loss", "seconds")  # fmt: skip
        rows: list[Row] = [
            (
                SETS[t.data][0] + _NOTED.get(t.recipe, ""), str(t.images), str(t.batch_size),
                f"{t.lr:g}", str(t.steps), f"{100 * t.balanced_accuracy:.1f}" + (" (chance)" if t.at_chance else ""),
                f"{100 * t.accuracy:.1f}", f"{100 * t.majority:.1f}", f"{t.loss:.2f}", f"{t.seconds:.0f}",
            )
            for t in self.measurements
        ]  # fmt: skip
        return ((head, rows),)

    @property
    def notes(self) -> str:
        """How to read the table."""
        return (
            "One training each, ResNet18 in 2x2 patches with the default settings but for those in the table; judged "
            f"on a quarter of the training images, which were held back. Small images are {self.settings.side}x"
            f'{self.settings.side}. "Chance": balanced accuracy within two standard errors of guessing. {self.load}'
        )


def _measure(study: Study[Options, Report]) -> None:
    torch.set_num_threads(1)
    options, progress = study.options, study.progress
    done = {(t.data, t.recipe, t.steps, t.lr) for t in study.report.measurements}
    stores = {data: _stores(study.folder, data, options) for data in options.sets}
    # One recipe on every set before the next, so that a part of the trainings already compares them.
    for (recipe, steps, lr, weights), data in itertools.product(_recipes(options), options.sets):
        config = RunConfig.of(valid_fraction=_VALID, **BEFORE)
        if steps:
            config = _config(stores[data], steps, lr).replace(class_weights=weights)
        key = (data, recipe, _num_steps(config, stores[data]), config.training.lr)
        if key in done:
            continue
        done.add(key)
        progress.trial(f"{data}, {recipe}: {key[2]} steps at {key[3]:g}")
        trial = _train(data, recipe, config, stores[data])
        progress.result(f"{trial.balanced_accuracy:.1%} balanced, {trial.seconds:.0f} s")
        study.keep(trial)


def _stores(root: Path, data: str, options: Options) -> StoreSet:
    """Make a set of images as a folder by class, unless it is embedded, and cut them into plain stores."""
    folder, make = root / data, SETS[data][1]
    if make is not None:
        write_folder(folder / "train", make(options.dataset, options.side))
        # A test split must be there; nothing is measured on it.
        write_folder(folder / "test", itertools.islice(make(options.dataset, options.side), 2))
    dataset = "digits" if make is None else str(folder)
    config = RunConfig.of(
        dataset=dataset,
        stores="plain",
        max_train=_DIGITS if make is None else 0,
        test_split="" if make is None else "test",
    )
    return ensure_stores(root / "stores", store_request(config))


def write_folder(folder: Path, images: Set) -> int:
    """Write images as PNG files into a folder for each class; return their number."""
    count = 0
    for count, (image, k) in enumerate(images, start=1):
        place = folder / f"class-{k}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{count:05d}.png")
    return count


def _recipes(options: Options) -> list[tuple[str, int, float, str]]:
    """Return each recipe's name, steps, learning rate for a batch of 64 and class weights; no steps for that before."""
    tried = itertools.product(map(int, options.steps), options.lrs, options.class_weights)
    names = {"none": "batch by images", "balanced": "batch by images, class weights"}
    return [("before", 0, 0.0, "none"), *((names[weights], steps, lr, weights) for steps, lr, weights in tried)]


def _config(stores: StoreSet, steps: int, lr: float) -> RunConfig:
    base = RunConfig.of(valid_fraction=_VALID)
    count = len(split_training(base, stores.description)[0])
    batch = batch_for(count)
    return base.replace(rounds=-(-steps // steps_per_epoch(count, batch)), batch_size=batch, lr=lr * batch / MOST_BATCH)


def _num_steps(config: RunConfig, stores: StoreSet) -> int:
    return config.training.rounds * batch_order(config, stores.description).steps_per_epoch


def _train(data: str, recipe: str, config: RunConfig, stores: StoreSet) -> Trial:
    description = stores.description
    with stores.opened() as opened:
        trainer = OneProcessTrainer(config, description, stores.labels, opened)
        began = time.perf_counter()
        trainer.train(_num_steps(config, stores))
        seconds = time.perf_counter() - began
        answers = trainer.evaluate(split="valid")
    found = scores(answers)
    return Trial(
        data=data,
        recipe=recipe,
        images=len(batch_order(config, description).pool),
        classes=description.num_classes,
        side=description.image_size[0],
        batch_size=config.training.batch_size,
        steps=trainer.step,
        lr=config.training.lr,
        accuracy=found.accuracy,
        balanced_accuracy=found.balanced_accuracy,
        majority=found.majority,
        at_chance=found.at_chance,
        loss=answers.loss,
        seconds=seconds,
    )


_ABOUT = "Train small sets with several recipes, in one process; with --out, finished trainings are kept."
main = kept.command("recipe", _ABOUT, Options, Report, _measure)

if __name__ == "__main__":
    sys.exit(main())
