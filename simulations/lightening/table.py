"""The report in words."""

from __future__ import annotations

import msgspec

from simulations.lightening.results import (
    CUT,
    DEFAULTS,
    DIRECT,
    REFERENCE,
    SECOND,
    TAUGHT,
    Model,
    Options,
    Report,
    difference,
    error_of,
    rivals,
)
from simulations.tables import Cells, Presentation, Row, again, machine, spread

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


def present(report: Report) -> Presentation:
    """Return the report in words."""
    return Presentation(
        title=title(report),
        tables=(models(report), goals(report)),
        notes=notes(report),
        command=command(report),
    )


def title(report: Report) -> str:
    """Return one line: what was lightened, how it ended, and where."""
    settings, config = report.settings, report.settings.config
    return (
        f"{config['dataset']}, {settings.train_images} training images, {settings.epochs} epochs, "
        f"{config['backbone']}; lightening ended as {report.end}; {machine(report)}"
    )


def models(report: Report) -> Cells:
    """Return names and cells of the table of models."""
    head = (
        "model", "accuracy, %", "less than the reference, points", "images/s", "times as fast", "ms for one", "MB",
        "times smaller", "M multiply-adds",
    )  # fmt: skip
    return head, [_row(report, model) for model in report.measurements]


def goals(report: Report) -> Cells:
    """Return names and cells of the table of goals."""
    settings, third, reference = report.settings, report.third, report.reference
    drop = reference.accuracy - third.accuracy
    smaller = reference.num_bytes / third.num_bytes
    rows: list[Row] = [
        _goal("times as fast as the reference", f"{settings.speedup:g}", spread(third.times_as_fast, _two),
              third.times_as_fast.median >= settings.speedup),
        _goal("times smaller", f"{settings.shrink:g}", f"{smaller:.2f}", smaller >= settings.shrink),
        _goal("points of accuracy lost, at most", f"{100 * settings.max_drop:g}", _points(reference, third),
              # Shares of whole images: what float arithmetic adds to a drop of just so much is none.
              drop <= settings.max_drop + 1e-9),
    ]  # fmt: skip
    rows += [
        _goal(f"points above: {name_of(rival)}", "more than 0", _points(third, rival), third.accuracy > rival.accuracy)
        for rival in rivals(report)
    ]
    return ("the third model", "asked", "reached", "met"), rows


def notes(report: Report) -> str:
    """Return how to read the tables."""
    settings, reference = report.settings, report.reference
    how = settings.lightening
    error = 100 * error_of(reference.accuracy, settings.test_images)
    trained = sum(model.train_s for model in report.measurements)
    timed = "processor time, which others on the machine hardly change" if settings.threads == 1 else "time passed"
    return (
        f"The lightening was asked for more than {report.min_speed:.0f} images/s: {settings.speedup:g} times the "
        "reference's, or what that reaches directly in int8 where it is more. Every file was measured as it lies on "
        f"the disk, by onnxruntime, on {settings.test_images} test images, by which the loop chooses (standard error "
        f"of the reference's accuracy {error:.1f} points; differences with their own, by pairs), and in "
        f"{settings.repetitions} turns with {settings.threads} thread{'s' * (settings.threads > 1)} ({timed}), "
        f"images/s in batches of {settings.batch}: medians (lowest to highest), ratios within a turn. Second: "
        f"{how['second_ratio']} times the {how['measure']}; third: {_epochs(report)} from {how['teacher']}, share "
        f"{how['distil_share']}. {_ENGINES[settings.engine]} The rivals are pruned alike and have no second model; "
        "the trained one learns from labels for as many epochs. Training within the lightening and of the rival took "
        f"{trained:.0f} s, all that this call did, which may have gone on with another's work, {report.seconds:.0f} s. "
        f"Load of the machine before: {report.machine['load_before']}."
    )


def command(report: Report) -> str:
    """Return the command line that measures the same again."""
    settings = report.settings
    options = ["--epochs", str(settings.epochs)]
    for field in msgspec.structs.fields(Options):
        value = getattr(settings, field.name)
        if value != "":
            text = f"{value:g}" if isinstance(value, float) else str(value)
            # One word: what follows begins with dashes itself.
            options.append(f"--{field.name.replace('_', '-')}={text}")
    return again("lightening", options, settings.config, DEFAULTS)


def name_of(model: Model) -> str:
    """Return what a model is called."""
    return _NAMES.get(model.name) or f"third, degree {model.degree}, int8"


def _row(report: Report, model: Model) -> Row:
    own = model is report.reference
    return (
        f"{name_of(model)}{' (found)' if model.name == report.found else ''}",
        f"{100 * model.accuracy:.1f}",
        "-" if own else _points(report.reference, model),
        spread(model.images_per_s, _whole),
        "1" if own else spread(model.times_as_fast, _two),
        spread(model.latency_ms, _two),
        f"{model.num_bytes / 1e6:.2f}",
        "1" if own else f"{report.reference.num_bytes / model.num_bytes:.2f}",
        f"{model.multiply_adds / 1e6:.1f}",
    )


def _goal(what: str, asked: str, reached: str, met: bool) -> Row:
    return what, asked, reached, "yes" if met else "no"


def _points(one: Model, other: Model) -> str:
    found = difference(one, other)
    return f"{100 * found.mean:+.1f} ± {100 * found.error:.1f}"


def _epochs(report: Report) -> str:
    settings = report.settings.lightening
    epochs = int(settings["epochs"]) or report.settings.epochs
    return f"{epochs} + {int(settings['rounding_epochs']) or max(1, epochs // 4)} epochs"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _two(value: float) -> str:
    return f"{value:.2f}"
