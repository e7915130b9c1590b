"""The commands `psl report` and `psl compare`: a run as one page, and runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from psl_flower.cli.completion import run_names
from psl_flower.cli.output import Json, RunArgument, RunName, Workspace, percent, print_table, run_named, say, tell
from psl_flower.errors import ConfigError
from psl_flower.text import duration

if TYPE_CHECKING:
    from psl_flower.runs.summary import Summary


def report(
    name: RunArgument = "",
    run: RunName = "",
    workspace: Workspace = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write [report.html in the run's folder].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a run: curves, confusion matrix, surest mistakes, who saw what, and how to repeat it."""
    from psl_flower.config import default_workspace
    from psl_flower.errors import RunError
    from psl_flower.runs.choosing import choose_reported
    from psl_flower.runs.folder import open_run
    from psl_flower.runs.page import render
    from psl_flower.runs.summary import Summary
    from psl_flower.system.files import write_file

    place, named = default_workspace(workspace), run_named(name, run)
    folder, skipped = (open_run(place, named), []) if named else choose_reported(place)
    if skipped:
        have = "have" if len(skipped) > 1 else "has"
        say(
            f"note: {', '.join(skipped)} {have} completed no round yet; taking {folder.name}, the newest run that has",
            err=True,
        )
    path = out or folder.path / "report.html"
    write_file(path, render(Summary.of(folder)).encode(), RunError)
    tell({"run": folder.name, "file": str(path)}, [f"{path}: the report of run {folder.name}"], as_json)


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Names of runs.", autocompletion=run_names)],
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Set runs side by side: results, costs, and the settings in which they differ."""
    from psl_flower.config import default_workspace
    from psl_flower.runs.folder import open_run
    from psl_flower.runs.summary import Summary, differences

    repeated = next((name for name in names if names.count(name) > 1), None)
    if len(names) < 2 or repeated:
        raise ConfigError(f"run {repeated} is named twice" if repeated else "name two runs or more")
    summaries = [Summary.of(open_run(default_workspace(workspace), name)) for name in names]
    apart = differences(summaries)
    datasets = {summary.description.fingerprint for summary in summaries}
    note = "" if len(datasets) == 1 else "the runs are on different images or grids"
    if as_json:
        rows = [{"run": summary.name, **_figures(summary)} for summary in summaries]
        tell({"runs": rows, "settings": apart, "note": note}, [], as_json=True)
        return
    print_table(
        [("", *(summary.name for summary in summaries)), *_rows(summaries), *((k, *v) for k, v in apart.items())]
    )
    if note:
        typer.echo(f"note: {note}")


def _figures(summary: Summary) -> dict[str, Any]:
    keys = ("accuracy", "balanced_accuracy", "test_loss", "step", "images_per_s")
    totals = {key: summary.total(key) for key in ("seconds", "bytes_up", "bytes_down")}
    return {"state": summary.state, **{key: summary.last(key) for key in keys}, **totals}


def _rows(summaries: list[Summary]) -> list[tuple[str, ...]]:
    found = [_figures(summary) for summary in summaries]

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        ("state", *(row["state"] for row in found)),
        ("test accuracy", *(percent(row["accuracy"]) for row in found)),
        ("balanced accuracy", *(percent(row["balanced_accuracy"]) for row in found)),
        ("test loss", *(number(row["test_loss"], ".4f") for row in found)),
        ("steps", *(number(row["step"], ".0f") for row in found)),
        ("time", *(duration(row["seconds"]) for row in found)),
        ("images/s", *(number(row["images_per_s"], ".0f") for row in found)),
        ("bytes up", *(decimal(int(row["bytes_up"])) for row in found)),
        ("bytes down", *(decimal(int(row["bytes_down"])) for row in found)),
    ]
