"""The command `psl lighten`: a light model for weak nodes, from a trained one."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psl_flower.cli.output import Json, RunArgument, RunName, Workspace, find_run, print_table, say
from psl_flower.cli.progress import Progress
from psl_flower.config.fields import Field, fields_of
from psl_flower.lightening.settings import EDGE, GROUPS

if TYPE_CHECKING:
    from psl_flower.lightening.folder import LighteningFolder
    from psl_flower.lightening.settings import Request
    from psl_flower.runs.folder import RunFolder


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of `**values`, an option for each goal and setting that it has no parameter for."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    del own["values"]
    options = {field.name: _option(field) for group in GROUPS for field in fields_of(group)} | own
    keyword_only = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options.values()]
    command.__dict__["__signature__"] = inspect.Signature(keyword_only)
    return command


def _option(field: Field) -> inspect.Parameter:
    about = field.about
    option = typer.Option(
        field.default,
        help=f"{about.doc[0].upper()}{about.doc[1:]}.",
        min=about.least if math.isfinite(about.least) else None,
        max=about.most if math.isfinite(about.most) else None,
    )
    kind = field.kind | None if field.default is None else field.kind
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


@_with_settings
def lighten(
    name: RunArgument = "",
    node: Annotated[str, typer.Argument(help="With --target node: its name, or Flower's id.", show_default=False)] = "",
    run: RunName = "",
    target: Annotated[
        str,
        typer.Option(metavar="edge|node NAME", help="Where speed is measured: all of it here, or a node's Uppers."),
    ] = EDGE,
    max_drop: Annotated[
        str, typer.Option(help="Instead: largest allowed loss of accuracy: 0.01, 1pt or 1%.", show_default=False)
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads to measure with; 0: all cores; 1 on a node.")] = 0,
    local: Annotated[bool, typer.Option("--local", help="In one process, on whole images; no federation.")] = False,
    nodes: Annotated[int, typer.Option(min=0, help="Simulated nodes; 0: what fits.")] = 0,
    workspace: Workspace = "",
    as_json: Json = False,
    **values: Any,
) -> None:
    """Find a smaller, faster model that is accurate enough.

    Tries the run's own model first, in float32 and in int8. If neither meets the goals, trains a larger one, prunes and
    quantises it until all goals are met. Never chooses a model that another one beats in everything.

    Runs over the federation, in a simulation on this machine: patches stay on their nodes, where the light Uppers are
    put in place. Ends with ONNX files of every Upper, the Lower and the whole network, or says which goal cannot be met
    and which model came closest (exit status 1). Rerun an interrupted command: finished work is kept.
    """
    from psl_flower.errors import ConfigError, LighteningImpossible
    from psl_flower.lightening.names import title_of
    from psl_flower.lightening.settings import parse_drop, request_of

    if run and target != EDGE and name and not node:
        name, node = "", name  # psl lighten --run RUN --target node NODE
    values |= {"target": _target(target, node, local), "threads": threads}
    try:
        values["max_drop"] = parse_drop(max_drop) if max_drop else None
        request = request_of({key.replace("_", "-"): value for key, value in values.items() if value is not None})
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    trained = find_run(name, workspace, run, with_model=False)
    folder, result = _locally(trained, request) if local else _over_the_federation(trained, request, nodes)
    _print(folder, request, result, as_json)
    if result["third"] is None:
        raise LighteningImpossible(
            f"{result['reason']}; closest: {title_of(result['closest'])}. Ask for less; accuracy "
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
    from psl_flower.lightening.report import as_json, write_report

    with Progress(every_s=5.0) as progress:
        found = find(run, request, progress.steps, progress.say)
    write_report(found)
    return found.folder, as_json(found)


def _over_the_federation(run: RunFolder, request: Request, nodes: int) -> tuple[LighteningFolder, dict[str, Any]]:
    from psl_flower.cli.train import completed
    from psl_flower.kinds import kind_of
    from psl_flower.lightening.artefacts import check_packages
    from psl_flower.lightening.folder import LighteningFolder
    from psl_flower.lightening.report import read_result

    check_packages()
    workspace = str(run.path.parents[1])
    given: dict[str, object] = {"lighten": run.name, "lighten-with": request.text(), "workspace": workspace}
    completed(given, kind_of(given), nodes)
    light = LighteningFolder(run, request.settings, federated=True)
    return light, read_result(light)


def _print(folder: LighteningFolder, request: Request, result: dict[str, Any], as_json: bool) -> None:
    from psl_flower.lightening.report import COLUMNS, REPORT_FILE, chosen_line, rows

    if as_json:
        typer.echo(json.dumps(result))
        return
    first = folder.judged("first")
    assert first is not None
    print_table([COLUMNS, *rows(folder.entries, request.goals.conditions(first.accuracy), result["choice"])])
    say(f"goals: {result['conditions']}")
    say(f"accuracy: on {result['images']}")
    in_turns = folder.are_compared()
    say(f"speed: {'of all models in turns' if in_turns else 'of each model when it was made, not side by side'}")
    say(chosen_line(result))
    say(f"report: {folder.path / REPORT_FILE}")
    if result["third"] is not None:
        say(f"light model: {result['third']}")
