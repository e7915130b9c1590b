"""The command `psl lighten`: a light model for weak nodes, from a trained one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psl_flower.cli.output import Json, Workspace, print_table
from psl_flower.cli.progress import Progress
from psl_flower.lightening.settings import EDGE, Against, Growth, Measure, TeacherChoice

if TYPE_CHECKING:
    from psl_flower.lightening.folder import LighteningFolder
    from psl_flower.lightening.request import Request, Value
    from psl_flower.runs.folder import RunFolder


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("lighten")(lighten)


def lighten(
    run: Annotated[str, typer.Argument(help="Name of a run that has a model.")],
    node: Annotated[str, typer.Argument(help="With --target node: its name, or Flower's id.", show_default=False)] = "",
    local: Annotated[bool, typer.Option("--local", help="In one process, on whole images; no federation.")] = False,
    target: Annotated[
        str,
        typer.Option(metavar="edge|node NAME", help="Where speed is measured: all of it here, or a node's Uppers."),
    ] = EDGE,
    min_accuracy: Annotated[float | None, typer.Option(help="Accuracy to exceed, 0 to 1.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Instead: accuracy that it may lose, 0 to 1.")] = None,
    min_speed: Annotated[float | None, typer.Option(help="Images/s to exceed, in batches.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Instead: time of one image to stay below.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads to measure with; 0: all cores; 1 on a node.")] = 0,
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
    teacher: Annotated[TeacherChoice, typer.Option(help="What the third model learns from.")] = TeacherChoice.SECOND,
    distil_share: Annotated[float, typer.Option(help="Weight of a teacher's answers; the rest is the labels'.")] = 0.7,
    distil_first: Annotated[bool, typer.Option(help="First teach the first model the second's answers.")] = False,
    nodes: Annotated[int, typer.Option(min=0, help="Simulated nodes; 0: what fits.")] = 0,
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Find a model that is light and good enough: a larger one, pruned and quantised until both conditions hold.

    Goes over the federation, in a simulation on this machine: patches stay on their nodes, where the light Uppers are
    put in place. Ends with int8 ONNX files of every Upper, the Lower and the whole, or says which condition cannot be
    met and what came closest (exit status 1). An interrupted lightening goes on when it is called again.
    """
    from psl_flower.errors import ConfigError, LighteningImpossible
    from psl_flower.lightening.request import request_of

    values: dict[str, Value] = {
        "target": _target(target, node, local),
        "threads": threads,
        "batch": batch,
        "against": against,
        "second-ratio": second_ratio,
        "measure": measure,
        "growth": growth,
        "max-pruned": max_pruned,
        "degrees": degrees,
        "weight-bits": weight_bits,
        "epochs": epochs,
        "rounding-epochs": rounding_epochs,
        "teacher": teacher,
        "distil-share": distil_share,
        "distil-first": distil_first,
    }
    conditions = {
        "min-accuracy": min_accuracy, "max-drop": max_drop, "min-speed": min_speed, "max-latency-ms": max_latency_ms,
    }  # fmt: skip
    values |= {key: value for key, value in conditions.items() if value is not None}
    try:
        request = request_of(values)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    from psl_flower.config import default_workspace
    from psl_flower.runs.folder import open_run

    trained = open_run(default_workspace(workspace), run)
    folder, result = _locally(trained, request) if local else _over_the_federation(trained, values, request, nodes)
    _print(folder, request, result, as_json)
    if result["third"] is None:
        raise LighteningImpossible(
            f"{result['reason']}; best found: degree {result['best_degree']}. Ask for less; accuracy "
            "may rise with --epochs, --teacher or --second-ratio, speed with --max-pruned"
        )


def _target(target: str, node: str, local: bool) -> str:
    """Return where speed is measured: `EDGE`, or a node's name."""
    if target not in (EDGE, "node"):
        raise typer.BadParameter(f"--target: expected edge, or node and its name, got {target!r}")
    if (target == "node") != bool(node):
        raise typer.BadParameter("--target node and the name of a node belong together: --target node NAME")
    if node and local:
        raise typer.BadParameter("--local knows no nodes; leave out --target node, or --local")
    return node or EDGE


def _locally(run: RunFolder, request: Request) -> tuple[LighteningFolder, dict[str, Any]]:
    from psl_flower.lightening.local import lighten as find
    from psl_flower.lightening.report import as_json, attempt_line, write_report

    with Progress(every_s=5.0) as progress:
        found = find(run, *request, progress.steps, lambda attempt: progress.say(attempt_line(attempt)))
    write_report(found)
    return found.folder, as_json(found)


def _over_the_federation(
    run: RunFolder, values: dict[str, Value], request: Request, nodes: int
) -> tuple[LighteningFolder, dict[str, Any]]:
    from psl_flower.cli.train import end_stopped, failure, run_to_end
    from psl_flower.config import RunConfig
    from psl_flower.lightening.artefacts import check_packages
    from psl_flower.lightening.folder import LighteningFolder
    from psl_flower.lightening.report import read_result
    from psl_flower.lightening.request import request_text

    check_packages()
    workspace = str(run.path.parents[1])
    # The cores of this machine are counted once.
    text = request_text(values | {"threads": request.settings.threads})
    given: dict[str, object] = {"lighten": run.name, "lighten-with": text, "workspace": workspace}
    folder, status, verdict = run_to_end(given, RunConfig.from_mapping(given), nodes=nodes)
    if status.state == "stopped":
        end_stopped(status)
    problem = failure(folder, status, verdict)
    if problem is not None:
        raise problem
    light = LighteningFolder(run, request.settings, federated=True)
    return light, read_result(light)


def _print(folder: LighteningFolder, request: Request, result: dict[str, Any], as_json: bool) -> None:
    from psl_flower.lightening.report import COLUMNS, REPORT_FILE, rows

    if as_json:
        typer.echo(json.dumps(result))
        return
    first = folder.judged("first")
    assert first is not None
    print_table([COLUMNS, *rows(folder.entries, request.asked.conditions(first.accuracy))])
    typer.echo(f"asked for: {result['conditions']}")
    typer.echo(f"report: {folder.path / REPORT_FILE}")
    if result["third"] is not None:
        typer.echo(f"light model: {result['third']}")
