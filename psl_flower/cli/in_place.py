"""`psl predict --in-place`: a Flower run that predicts with a trained run's model where it lies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import typer

from psl_flower.cli.output import percent, say
from psl_flower.text import counted

if TYPE_CHECKING:
    from psl_flower.runs.folder import RunFolder
    from psl_flower.runs.predictions import Result


def predict_in_place(run: str, workspace: str, asked: dict[str, object], nodes: int, as_json: bool) -> None:
    """Predict in a simulation on this machine, show how it goes, and say what came out.

    `asked` are further settings by their kebab-case keys, as `flwr run` takes them; `nodes` are simulated, 0 for what
    fits. An empty `workspace` stands for the default folder of runs.

    Raises
    ------
    PslError
        If it cannot be done; see `server.predicting`.
    """
    from psl_flower.cli.train import completed
    from psl_flower.errors import ConfigError, RunError
    from psl_flower.kinds import kind_of
    from psl_flower.runs.predictions import load_result

    given = {**asked, "predict": run, **({"workspace": workspace} if workspace else {})}
    try:
        kind = kind_of(given)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    folder = completed(given, kind, nodes)
    result = load_result(folder.path)
    if result is None:
        raise RunError(f"{folder.path}: the prediction ended without a result")
    _print(folder, result, as_json)


def _print(folder: RunFolder, result: Result, as_json: bool) -> None:
    from psl_flower.runs.folder import PREDICTIONS_FILE
    from psl_flower.runs.predictions import TABLE

    if as_json:
        files = {"predictions": str(folder.path / PREDICTIONS_FILE), "table": str(folder.path / TABLE)}
        report = {**msgspec.to_builtins(result), "folder": str(folder.path), **files}
        typer.echo(json.dumps(report))
        return
    what = counted(result.images, f"{result.split} image".lstrip())
    light = ", made light" if result.light else ""
    say(
        f"{result.run} after {counted(result.step, 'step')}{light}: {what}, accuracy {percent(result.accuracy)}, "
        f"loss {result.loss:.4f}"
    )
    for part in result.absent:
        say(f"without Upper {part.upper} (position {', '.join(map(str, part.positions))}): zeros in its place")
    say(f"predictions: {folder.path / TABLE} (and .npz)")
    if result.accuracy < 1:
        say(f"wrong images: psl restore --manifest ... --wrong-only {folder.path}")
