"""Time from a folder of images to a trained model, and its accuracy; `python -m simulations.first_model`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from psl_flower.config import fields
from psl_flower.config.fields import setting
from psl_flower.runs.folder import RunFolder
from simulations import kept
from simulations.child import call
from simulations.kept import Study
from simulations.options import several
from simulations.reports import Cells, Row
from simulations.small_sets import SETS, about, images_of, set_or_folder, write_folder

# Those that are folders of images.
_FOLDERS = tuple(name for name, (_, make) in SETS.items() if make is not None)


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What to train on."""

    dataset: str = setting("uoft-cs/cifar10", "CIFAR-10: a hub name, or a folder of it")
    sets: tuple[str, ...] = several(_FOLDERS, "sets of images, or folders of them", set_or_folder)
    side: int = setting(32, "height and width of small images, in pixels", least=8)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One `psl train dataset=FOLDER`, with no other setting, judged by the images that it held back."""

    data: str
    images: int  #: Images in the folder, test images included.
    side: int  #: Height and width of images in pixels.
    steps: int
    seconds: float  #: Duration of the whole command.
    #: Scores on the test images, 0..1; the last is that of always answering the most frequent class.
    accuracy: float
    balanced_accuracy: float
    majority: float
    at_chance: bool  #: Same as `psl_flower.engine.classification_scores.Scores.at_chance`.


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: every training."""

    benchmark: str = "first-model"
    version: int = 1
    settings: Options
    measurements: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        return f"From a folder of images to a trained model, by `psl train dataset=FOLDER` alone; {self.place}"

    @property
    def tables(self) -> tuple[Cells, ...]:
        """Every training."""
        head = ("images", "number", "size", "minutes", "steps", "balanced accuracy, %", "accuracy, %", "majority, %")
        rows: list[Row] = [
            (
                about(t.data), str(t.images), f"{t.side}x{t.side}", f"{t.seconds / 60:.1f}", str(t.steps),
                f"{100 * t.balanced_accuracy:.1f}" + (" (chance)" if t.at_chance else ""), f"{100 * t.accuracy:.1f}",
                f"{100 * t.majority:.1f}",
            )
            for t in self.measurements
        ]  # fmt: skip
        return ((head, rows),)

    @property
    def notes(self) -> str:
        """How to read the table."""
        return (
            "One training each, with the default settings: 2x2 patches on 4 nodes, ResNet18, 200 steps. Time from the "
            "command to its end, starting Flower and sealing included. Judged on the fifth of the images that `psl "
            'train` holds back. "Chance": balanced accuracy within two standard errors of guessing. '
            f"{self.load}"
        )


def _measure(study: Study[Options, Report]) -> None:
    done = {trial.data for trial in study.report.measurements}
    for data in study.options.sets:
        if data not in done:
            study.progress.trial(data)
            trial = _train(study.folder, data, study.options)
            study.progress.result(f"{trial.balanced_accuracy:.1%} balanced, {trial.seconds:.0f} s")
            study.keep(trial)


def _train(root: Path, data: str, options: Options) -> Trial:
    images, dataset = images_of(data, options.dataset, options.side) if data in SETS else None, data
    if images is not None:
        dataset = str(root / data)
        write_folder(root / data, images)
    began = time.perf_counter()
    trained = _psl("train", f"dataset={dataset}", "--workspace", str(root / "workspace"))
    seconds = time.perf_counter() - began
    description = RunFolder(Path(trained["folder"])).read_description()
    found = _psl("evaluate", trained["run"], "--workspace", str(root / "workspace"))
    return Trial(
        data=data,
        images=description.num_samples,
        side=description.image_size[0],
        steps=trained["step"],
        seconds=seconds,
        accuracy=found["accuracy"],
        balanced_accuracy=found["balanced_accuracy"],
        majority=found["majority_accuracy"],
        at_chance=found["at_chance"],
    )


def _psl(*arguments: str) -> dict[str, Any]:
    """Call `psl` and return its JSON; raises RunError with its last words if it fails."""
    printed = call(Path(sys.executable).with_name("psl"), *arguments, "--json")
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer


_ABOUT = "Train on folders of images as a new user does; with --out, finished trainings are kept."
main = kept.command("first-model", _ABOUT, Options, Report, _measure)

if __name__ == "__main__":
    sys.exit(main())
