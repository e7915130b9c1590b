"""The command `psl lighten`: a light model for weak nodes, from a trained one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from psl_flower.cli.output import Json, Workspace, percent, print_table
from psl_flower.cli.steps import steps_shown
from psl_flower.lightening.settings import Against, Asked, Growth, Lesson, LighteningSettings, Measure

if TYPE_CHECKING:
    from psl_flower.lightening.loop import Attempt


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("lighten")(lighten)


def lighten(
    run: Annotated[str, typer.Argument(help="Name of a run that has a model.")],
    local: Annotated[bool, typer.Option("--local", help="In one process, on whole images.")] = False,
    min_accuracy: Annotated[float | None, typer.Option(help="Accuracy to exceed, 0 to 1.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Instead: accuracy that it may lose, 0 to 1.")] = None,
    min_speed: Annotated[float | None, typer.Option(help="Images/s to exceed, in batches.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Instead: time of one image to stay below.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads to measure with; 0: all cores.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time when images/s are measured.")] = 32,
    against: Annotated[Against, typer.Option(help="What accuracy is: agreement with these.")] = Against.LABELS,
    second_ratio: Annotated[float, typer.Option(help="Size of the second model over that of the first.")] = 2.0,
    measure: Annotated[Measure, typer.Option(help="Which size that is.")] = Measure.MULTIPLY_ADDS,
    growth: Annotated[Growth, typer.Option(help="How the second is larger.")] = Growth.WIDTH,
    max_pruned: Annotated[float, typer.Option(help="Share of channels cut at the last degree.")] = 0.875,
    degrees: Annotated[int, typer.Option(help="Degrees of lightening beyond 0.")] = 12,
    weight_bits: Annotated[int, typer.Option(help="7 for every processor; 8 where it has VNNI.")] = 7,
    epochs: Annotated[int, typer.Option(help="Epochs of each training; 0: as many as the run.")] = 0,
    rounding_epochs: Annotated[int, typer.Option(help="Epochs with quantisation; 0: a quarter of them.")] = 0,
    teacher: Annotated[Lesson, typer.Option(help="What the third model learns from.")] = Lesson.SECOND,
    distil_share: Annotated[float, typer.Option(help="Weight of a teacher's answers; the rest is the labels'.")] = 0.7,
    distil_first: Annotated[bool, typer.Option(help="First teach the first model the second's answers.")] = False,
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Find a model that is light and good enough: a larger one, pruned and quantised until both conditions hold.

    Ends with int8 ONNX files of every Upper, the Lower and the whole, or says which condition cannot be met and what
    came closest (exit status 1). An interrupted lightening goes on when it is called again.
    """
    if not local:
        raise typer.BadParameter("over the federation this is not available yet; give --local to use whole images")
    from psl_flower.config import default_workspace
    from psl_flower.errors import ConfigError, LighteningImpossible
    from psl_flower.machine import usable_cores
    from psl_flower.runs import open_run

    try:
        asked = Asked(min_accuracy=min_accuracy, max_drop=max_drop, min_speed=min_speed, max_latency_ms=max_latency_ms)
        settings = LighteningSettings(
            second_ratio=second_ratio,
            measure=measure,
            growth=growth,
            max_pruned=max_pruned,
            degrees=degrees,
            weight_bits=weight_bits,
            epochs=epochs,
            rounding_epochs=rounding_epochs,
            teacher=teacher,
            distil_share=distil_share,
            distil_first=distil_first,
            against=against,
            threads=threads or usable_cores(),
            batch=batch,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    folder = open_run(default_workspace(workspace), run)
    from psl_flower.lightening.local import lighten as find
    from psl_flower.lightening.report import COLUMNS, rows, write_report
    from psl_flower.lightening.report import as_json as plain

    with steps_shown() as shown:
        result = find(folder, asked, settings, shown.steps, lambda attempt: shown.say(_line(attempt)))
    report = write_report(result)
    if as_json:
        typer.echo(json.dumps(plain(result)))
    else:
        print_table([COLUMNS, *rows(result.folder.entries, result.conditions)])
        typer.echo(f"asked for: {result.conditions.text()}")
        typer.echo(f"report: {report}")
    if result.third is None:
        raise LighteningImpossible(
            f"{result.outcome.reason}; best found: degree {result.outcome.best.degree}. Ask for less, or change "
            "--second-ratio, --max-pruned, --degrees or --epochs"
        )
    if not as_json:
        typer.echo(f"light model: {result.third}")


def _line(attempt: Attempt) -> str:
    judged = attempt.judged
    return (
        f"degree {attempt.degree}: accuracy {percent(judged.accuracy)}, {judged.images_per_s:.0f} images/s, "
        f"{judged.latency_ms:.2f} ms, {judged.num_bytes / 1e6:.2f} MB: {attempt.verdict}"
    )
