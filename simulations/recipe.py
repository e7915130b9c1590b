"""Batch, learning rate and steps for sets as users have them, on validation images; `python -m simulations.recipe`."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from psl_flower.config import RunConfig, fields
from psl_flower.config.fields import setting
from psl_flower.config.training import CLASS_WEIGHTS
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
from simulations.small_sets import DIGITS, SETS, about, images_of, set_or_folder, write_folder

# What a run trained with before: 3 epochs of mini-batches of 64 at 0.05.
BEFORE = {"rounds": 3, "batch_size": 64, "lr": 0.05}
_VALID = 0.25


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What to try."""

    dataset: str = setting("uoft-cs/cifar10", "CIFAR-10: a hub name, or a folder of it")
    sets: tuple[str, ...] = several(tuple(SETS), "sets of images, or folders of them", set_or_folder)
    steps: tuple[float, ...] = several((100.0, 200.0), "steps to train for, rounded up to whole epochs", number)
    lrs: tuple[float, ...] = several(
        (0.05, 0.2), "peak learning rates for a batch of 64, less for smaller ones", number
    )
    class_weights: tuple[str, ...] = several(("none",), "class weights in the loss", one_of(CLASS_WEIGHTS))
    side: int = setting(32, "height and width of small images, in pixels", least=8)


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
    #: Scores on the validation images, 0..1; the last is that of always answering the most frequent class.
    accuracy: float
    balanced_accuracy: float
    majority: float
    at_chance: bool  #: Same as `psl_flower.engine.classification_scores.Scores.at_chance`.
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
                about(t.data) + _NOTED.get(t.recipe, ""), str(t.images), str(t.batch_size),
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
    folder, images = root / Path(data).name, images_of(data, options.dataset, options.side)
    if images is not None:
        write_folder(folder / "train", images)
        # A test split must be there; nothing is measured on it.
        write_folder(folder / "test", itertools.islice(images_of(data, options.dataset, options.side) or (), 2))
    dataset = "digits" if images is None else str(folder)
    config = RunConfig.of(
        dataset=dataset,
        stores="plain",
        max_train=DIGITS if images is None else 0,
        test_split="" if images is None else "test",
    )
    return ensure_stores(root / "stores", store_request(config))


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
