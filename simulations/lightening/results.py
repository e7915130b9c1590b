"""The report: every model compared with the reference, and whether the goals are met."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from psl_flower.config import fields
from psl_flower.config.fields import setting
from psl_flower.text import counted
from simulations import reports
from simulations.options import texts
from simulations.reports import Cells, Row, Spread, Values
from simulations.tables import again, network_name, spread

# A recipe for few epochs; the Uppers' own losses serve the leakage study and cost time here.
DEFAULTS: dict[str, object] = {
    "dataset": "digits", "batch-size": 64, "lr": 0.05, "alpha": 0.0, "evaluate-every": 0, "progress-every-s": 0.0,
}  # fmt: skip
ENGINES = ("flwr", "one-graph")
REFERENCE, DIRECT, SECOND, CUT, TAUGHT = "first", "first-int8", "second", "first-cut-int8", "first-cut-labels-int8"
_NAMES = {
    REFERENCE: "reference, float32",
    DIRECT: "reference, directly in int8",
    SECOND: "second, float32",
    "first-distilled": "reference, taught by the second, float32",
    CUT: "reference cut to the third's size, directly in int8",
    TAUGHT: "the same, trained from labels before",
}

_ENGINES = {
    "flwr": "The reference was trained through Flower.",
    "one-graph": "The reference was trained in one process, which gives the weights of the federated run.",
}


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What is asked for, and how it is measured."""

    epochs: int = setting(10, "passes of the reference over the training images", least=1)
    speedup: float = setting(3.0, "speed-up over the reference to ask of the light model", least=1, most=1000)
    shrink: float = setting(4.0, "reduction in size to ask of it", least=1, most=1000)
    max_drop: float = setting(0.01, "accuracy it may lose, 0 to below 1", least=0, most=0.999)
    lighten: str = setting("", "further arguments of psl lighten, such as '--epochs 5'")
    threads: int = setting(1, "threads that speed is measured with", least=1)
    batch: int = setting(32, "images at a time when images/s are measured", least=1)
    repetitions: int = setting(5, "turns in which all models are measured", least=1)
    engine: str = setting(
        "flwr",
        "the reference: through flwr run, or as one graph in one process, whose weights are the same",
        choices=ENGINES,
    )


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What was measured."""

    config: Values  #: Settings of the reference's run by their kebab-case keys.
    #: Number of images that it learnt from, and that everything is judged by.
    train_images: int
    test_images: int
    lightening: Values  #: Settings of the lightening.


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact."""

    name: str  #: Name in the lightening's log; `CUT` and `TAUGHT` are the rivals.
    degree: int | None  #: Degree of lightening.
    right: str  #: One character per test image, in order: "1" if the answer is right, else "0".
    #: The file on disk, and the network; multiply-adds for one image.
    num_bytes: int
    parameters: int
    multiply_adds: int
    #: Speed in batches, and latency of one image alone, over the turns.
    images_per_s: Spread
    latency_ms: Spread
    times_as_fast: Spread  #: Images/s over those of the reference in the same turn.
    train_s: float  #: Seconds that training and judging took within the lightening; 0 if not known.

    @property
    def accuracy(self) -> float:
        """Share of the test images that it answers rightly."""
        return self.right.count("1") / len(self.right)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of one model less that of another on the same images, and its standard error."""

    mean: float
    error: float


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file."""

    benchmark: str = "lightening"
    version: int = 1
    settings: Settings
    min_speed: float  #: Images/s that the lightening was asked to exceed.
    end: str  #: End of the lightening, and why.
    found: str  #: Name of the third model, or of the attempt that came closest.
    measurements: tuple[Model, ...]  #: The reference first.
    seconds: float  #: Duration of everything.

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

    @property
    def title(self) -> str:
        """One line: what was lightened, how it ended, and where."""
        settings, config = self.settings, self.settings.config
        return (
            f"{config['dataset']}, {settings.train_images} training images, {settings.epochs} epochs, "
            f"{network_name(config)}; lightening ended as {self.end}; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """The models, and the goals."""
        head = (
            "model", "accuracy, %", "less than the reference, points", "images/s", "times as fast", "ms for one", "MB",
            "times smaller", "M multiply-adds",
        )  # fmt: skip
        goals = ("the third model", "asked", "reached", "met")
        return (head, [self._row(model) for model in self.measurements]), (goals, self._goals())

    def _row(self, model: Model) -> Row:
        own = model is self.reference
        return (
            f"{name_of(model)}{' (found)' if model.name == self.found else ''}",
            f"{100 * model.accuracy:.1f}",
            "-" if own else _points(self.reference, model),
            spread(model.images_per_s, ",.0f"),
            "1" if own else spread(model.times_as_fast, ".2f"),
            spread(model.latency_ms, ".2f"),
            f"{model.num_bytes / 1e6:.2f}",
            "1" if own else f"{self.reference.num_bytes / model.num_bytes:.2f}",
            f"{model.multiply_adds / 1e6:.1f}",
        )

    def _goals(self) -> list[Row]:
        settings, third, reference = self.settings, self.third, self.reference
        fast, smaller = third.times_as_fast, reference.num_bytes / third.num_bytes
        # Shares of whole images: float error must not turn a drop of exactly the limit into a larger one.
        kept = reference.accuracy - third.accuracy <= settings.max_drop + 1e-9
        asked = f"{settings.speedup:g}", f"{settings.shrink:g}", f"{100 * settings.max_drop:g}"
        goals = [
            ("times as fast as the reference", asked[0], spread(fast, ".2f"), fast.median >= settings.speedup),
            ("times smaller", asked[1], f"{smaller:.2f}", smaller >= settings.shrink),
            ("points of accuracy lost, at most", asked[2], _points(reference, third), kept),
        ]
        for name in (DIRECT, CUT, TAUGHT):
            if rival := self.model(name):  # quantised without a second model
                better = third.accuracy > rival.accuracy
                goals.append((f"points above: {name_of(rival)}", "more than 0", _points(third, rival), better))
        return [(what, wanted, reached, "yes" if met else "no") for what, wanted, reached, met in goals]

    @property
    def notes(self) -> str:
        """How to read the tables."""
        settings, reference = self.settings, self.reference
        how = settings.lightening
        error = 100 * error_of(reference.accuracy, settings.test_images)
        trained = sum(model.train_s for model in self.measurements)
        timed = "processor time, which others on the machine hardly change" if settings.threads == 1 else "time passed"
        epochs = int(how["epochs"]) or settings.epochs
        rounding = int(how["rounding_epochs"]) or max(1, epochs // 4)
        return (
            f"The lightening was asked for more than {self.min_speed:.0f} images/s: {settings.speedup:g} times the "
            "reference's, or what that reaches directly in int8 where it is more. Every file was measured as it lies "
            f"on the disk, by onnxruntime, on {settings.test_images} test images, by which the loop chose (newer "
            "versions choose by half of them, or by validation images, and only report the rest; standard "
            f"error of the reference's accuracy {error:.1f} points; differences with their own, by pairs), and in "
            f"{settings.repetitions} turns with {counted(settings.threads, 'thread')} ({timed}), "
            f"images/s in batches of {settings.batch}: medians (lowest to highest), ratios within a turn. Second: "
            f"{how['second_ratio']} times the {how['measure']}; third: {epochs} + {rounding} epochs from "
            f"{how['teacher']}, share {how['distil_share']}. {_ENGINES[settings.engine]} The rivals are pruned in "
            "the same way and have no second model; the trained one learns from labels for as many epochs. Training "
            f"within the lightening and of the rival took {trained:.0f} s, all that this call did, which may have "
            f"continued another's work, {self.seconds:.0f} s. {self.load}"
        )

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        epochs, *options = texts(self.settings).items()
        # One word each: what follows may begin with dashes itself.
        words = [(f"{name}={text}", "") for name, text in options]
        return again("lightening", [epochs, *words], self.settings.config, DEFAULTS)


def difference(one: Model, other: Model) -> Difference:
    """Return by how much one model is more accurate than another; both answered the same images."""
    pairs = [(a == "1") - (b == "1") for a, b in zip(one.right, other.right, strict=True)]
    mean = sum(pairs) / len(pairs)
    variance = sum((pair - mean) ** 2 for pair in pairs) / max(1, len(pairs) - 1)
    return Difference(mean=mean, error=math.sqrt(variance / len(pairs)))


def error_of(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy, by the number of images."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def name_of(model: Model) -> str:
    """Return a model's name."""
    return _NAMES.get(model.name) or f"third, degree {model.degree}, int8"


def _points(one: Model, other: Model) -> str:
    found = difference(one, other)
    return f"{100 * found.mean:+.1f} ± {100 * found.error:.1f}"
