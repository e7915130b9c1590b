"""What is measured and written: every model beside the reference, and whether the goals are met."""

from __future__ import annotations

import math

import msgspec

from simulations import reports
from simulations.reports import Spread, Values

VERSION = 1
# A recipe for few epochs; the Uppers' own losses serve the leakage study and cost time here.
DEFAULTS: dict[str, object] = {"dataset": "digits", "alpha": 0.0, "evaluate-every": 0, "progress-every-s": 0.0}
ENGINES = ("flwr", "one-graph")
REFERENCE, DIRECT, SECOND, CUT, TAUGHT = "first", "first-int8", "second", "first-cut-int8", "first-cut-labels-int8"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, and how it is measured.

    Attributes
    ----------
    speedup, shrink : float
        So many times faster and smaller than the reference.
    max_drop : float
        Accuracy that may be lost, 0..1.
    lighten : str
        Arguments of `psl lighten` beyond the conditions.
    threads, batch : int
        As speed is measured.
    repetitions : int
        Turns in which all models are measured.
    engine : str
        How the reference was trained: through `flwr run`, or as one graph in one process.
    """

    speedup: float
    shrink: float
    max_drop: float
    lighten: str
    threads: int
    batch: int
    repetitions: int
    engine: str


class Settings(Options, frozen=True, kw_only=True):
    """What was measured.

    Attributes
    ----------
    config : dict
        Settings of the reference's run by their kebab-case keys.
    train_images, test_images, epochs : int
        What it learnt from, what everything is judged by, and the reference's passes.
    lightening : dict
        Settings of the lightening.
    """

    config: Values
    train_images: int
    test_images: int
    epochs: int
    lightening: dict[str, str | int | float | bool]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact.

    Attributes
    ----------
    name : str
        As in the lightening's log; `CUT` and `TAUGHT` are the rivals.
    degree : int or None
        Of lightening.
    right : str
        For every test image in order "1" where the answer is right, otherwise "0".
    num_bytes, parameters, multiply_adds : int
        The file on disk, and the network; multiply-adds for one image.
    images_per_s, latency_ms : Spread
        In batches, and of one image alone, over the turns.
    times_as_fast : Spread
        Images/s over those of the reference in the same turn.
    train_s : float
        Seconds that training and judging took within the lightening; 0 where not known.
    """

    name: str
    degree: int | None
    right: str
    num_bytes: int
    parameters: int
    multiply_adds: int
    images_per_s: Spread
    latency_ms: Spread
    times_as_fast: Spread
    train_s: float

    @property
    def accuracy(self) -> float:
        """Share of the test images that it answers rightly."""
        return self.right.count("1") / len(self.right)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of one model less that of another on the same images, and its standard error."""

    mean: float
    error: float


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file.

    Attributes
    ----------
    settings : Settings
        What was measured.
    min_speed : float
        Images/s that the lightening was asked to exceed.
    end : str
        How the lightening ended, and why.
    found : str
        Name of the third model, or of the attempt that came closest.
    satisfied : bool
        Whether that one met the lightening's own conditions.
    measurements : tuple of Model
        The reference first.
    seconds : float
        Of everything.
    """

    benchmark: str = "lightening"
    version: int = VERSION
    settings: Settings
    min_speed: float
    end: str
    found: str
    satisfied: bool
    measurements: tuple[Model, ...]
    seconds: float

    def model(self, name: str) -> Model | None:
        """Return a model by its name, None if it was not measured."""
        return next((model for model in self.measurements if model.name == name), None)

    @property
    def reference(self) -> Model:
        """The first model in float32."""
        return self.measurements[0]

    @property
    def third(self) -> Model:
        """What the lightening found."""
        found = self.model(self.found)
        assert found is not None
        return found


def difference(one: Model, other: Model) -> Difference:
    """Return by how much one model is more accurate than another; both answered the same images."""
    pairs = [(a == "1") - (b == "1") for a, b in zip(one.right, other.right, strict=True)]
    mean = sum(pairs) / len(pairs)
    variance = sum((pair - mean) ** 2 for pair in pairs) / max(1, len(pairs) - 1)
    return Difference(mean=mean, error=math.sqrt(variance / len(pairs)))


def error_of(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy measured on so many images."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def rivals(report: Report) -> list[Model]:
    """Return what is quantised without a second model: the reference, and the reference cut to the third's size."""
    return [model for name in (DIRECT, CUT, TAUGHT) if (model := report.model(name))]
