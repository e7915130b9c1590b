"""Measures how fast datasets are read, compared with an older installation; `python -m simulations.reading`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from psl_flower.config import fields
from psl_flower.config.fields import setting
from psl_flower.errors import RunError
from psl_flower.text import counted
from simulations import kept
from simulations.kept import Study
from simulations.reports import Cells, Row, Spread
from simulations.tables import spread

# Run by each installation's own interpreter, so of what both have.
_PROGRAM = """
import json, sys, time
from psl_flower.data.sources import open_dataset
began = time.perf_counter()
source = open_dataset(sys.argv[1])
opened = time.perf_counter()
images = sum(1 for split in ("train", "test") for _ in source.samples(split))
print(json.dumps({"open_s": opened - began, "read_s": time.perf_counter() - opened, "images": images}))
"""
_TIMEOUT_S = 3600.0
_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """How to measure."""

    small: int = setting(50_000, "images of 32x32 as PNG, in folders by class and in a parquet file", least=_CLASSES)
    large: int = setting(3_000, "images of 256x256 as JPEG, in folders by class", least=_CLASSES)
    repetitions: int = setting(7, "times that each is read, in turns", least=1)
    other: str = setting("", "Python of an older installation to compare with, such as ../base/.venv/bin/python")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of all images of a dataset in a fresh process."""

    #: Dataset read, and the installation that read it: "this" or "other".
    data: str
    installation: str
    images: int
    #: Seconds to open the dataset, and to decode its images.
    open_s: float
    read_s: float


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: every reading."""

    benchmark: str = "reading"
    version: int = 1
    settings: Options
    measurements: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        return f"Opening datasets and decoding their images, on one core; {self.place}"

    @property
    def tables(self) -> tuple[Cells, ...]:
        """The rates of each kind of data, and of the older installation's in the same turns."""
        head = ("data", "installation", "opening, s", "images a second", "of the other's time")
        rows: list[Row] = []
        for data in dict.fromkeys(trial.data for trial in self.measurements):
            for installation in ("this", "other"):
                found = self._of(data, installation)
                if found:
                    opening = Spread.of(trial.open_s for trial in found)
                    rate = Spread.of(trial.images / trial.read_s for trial in found)
                    ratio = self._ratio(data) if installation == "this" else None
                    shares = "-" if ratio is None else spread(ratio, lambda share: f"{share:.3f}")
                    rows.append((
                        data, installation, spread(opening, lambda s: f"{s:.2f}"),
                        spread(rate, lambda r: f"{r:.0f}"), shares,
                    ))  # fmt: skip
        return ((head, rows),)

    @property
    def notes(self) -> str:
        """How to read the table."""
        return (
            f"Median (lowest to highest) of {counted(self.settings.repetitions, 'repetition')}, each in a fresh "
            "process, files in the page cache; the last column is opening and decoding together, turn by turn. "
            f"{self.load}"
        )

    def _of(self, data: str, installation: str) -> list[Trial]:
        return [trial for trial in self.measurements if (trial.data, trial.installation) == (data, installation)]

    def _ratio(self, data: str) -> Spread | None:
        pairs = list(zip(self._of(data, "this"), self._of(data, "other"), strict=False))
        return Spread.of((a.open_s + a.read_s) / (b.open_s + b.read_s) for a, b in pairs) if pairs else None


def _measure(study: Study[Options, Report]) -> None:
    options, progress = study.options, study.progress
    done = Counter((trial.data, trial.installation) for trial in study.report.measurements)
    pythons = {"this": sys.executable} | ({"other": os.path.abspath(options.other)} if options.other else {})
    for data, folder in _datasets(study.folder, options):
        if all(done[data, installation] >= options.repetitions for installation in pythons):
            continue
        for installation, python in pythons.items():
            _read(python, folder)  # what the first reading leaves in caches is not timed
            progress.trial(f"{data}, {installation}: warm")
        for repetition in range(options.repetitions):
            for installation, python in pythons.items():
                if repetition < done[data, installation]:
                    continue
                progress.trial(f"{data}, {installation}: {repetition + 1} of {options.repetitions}")
                trial = msgspec.convert(_read(python, folder) | {"data": data, "installation": installation}, Trial)
                progress.result(f"{trial.images / trial.read_s:.0f} images/s")
                study.keep(trial)


def _datasets(root: Path, options: Options) -> Iterator[tuple[str, Path]]:
    """Make each kind of data, then yield its name and folder."""
    import datasets

    datasets.disable_progress_bars()
    random = np.random.default_rng(0)
    png = [_encoded(random, 32, "PNG") for _ in range(100)]
    jpeg = [_encoded(random, 256, "JPEG") for _ in range(100)]
    for name, count, files, ending in (("small PNG", options.small, png, "png"), ("JPEG", options.large, jpeg, "jpg")):
        folder = root / ending
        for k in range(count):
            place = folder / ("test" if k % 6 == 5 else "train") / f"class-{k % _CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{k:06d}.{ending}").write_bytes(files[k % len(files)])
        yield f"{name}, folders by class", folder
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png[k % len(png)], "path": None} for k in range(options.small)],
            "label": [k % _CLASSES for k in range(options.small)],
        },
        features=datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=[f"class-{k}" for k in range(_CLASSES)])
        ),
    )
    (root / "parquet").mkdir()
    table.to_parquet(root / "parquet" / "train.parquet")
    yield "small PNG, parquet", root / "parquet"


def _encoded(random: np.random.Generator, side: int, kind: str) -> bytes:
    # As smooth as photographs are, or decoding would take far longer than theirs does.
    rough = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    file = io.BytesIO()
    rough.resize((side, side), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def _read(python: str, folder: Path) -> dict[str, object]:
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM, str(folder)], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"--other {python}: {error}") from error
    if done.returncode:
        raise RunError(f"{python}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


_ABOUT = "Measure how fast datasets are opened and decoded; with --out, finished readings are kept."
main = kept.command("reading", _ABOUT, Options, Report, _measure)

if __name__ == "__main__":
    sys.exit(main())
