"""`psl evaluate` where the patches are on other machines: what the nodes and the server answered last."""

from __future__ import annotations

import json

import typer

from psl_flower.cli.output import percent, print_table, run_of, say
from psl_flower.text import counted


def evaluated_by_the_nodes(name: str, workspace: str, as_json: bool) -> bool:
    """Print the last evaluation of a run that cannot be evaluated here; return whether it was one.

    Parameters
    ----------
    name : str
        Of the run; empty for the newest.
    workspace : str
        Folder of runs; empty for the default.
    as_json : bool
        Whether to print one JSON object.

    Raises
    ------
    PslError
        If there is no such run, or its files are damaged.
    """
    from psl_flower.config import default_workspace
    from psl_flower.runs.mistakes import columns_of
    from psl_flower.stores.prepare import stores_are_here

    run = run_of(default_workspace(workspace), name)
    evaluated = run.has_description and (run.path / "predictions.npz").exists()
    if run.instead or not evaluated or (run.has_model and stores_are_here(run.read_config())):
        return False
    description = run.read_description()
    _, label_N, predicted_N, *_ = columns_of(run.path, "test")
    right_N = label_N == predicted_N
    classes: list[tuple[str, int, float | None]] = []
    for k, class_name in enumerate(description.class_names):
        of_class = right_N[label_N == k]
        classes.append((class_name, len(of_class), float(of_class.mean()) if len(of_class) else None))
    again = f"flwr run . FEDERATION --stream --run-config 'predict=\"{run.name}\"'"
    if as_json:
        report = {"run": run.name, "dataset": description.dataset, "images": len(label_N)}
        by_class = [dict(zip(("class", "images", "accuracy"), entry, strict=True)) for entry in classes]
        measured = {"accuracy": float(right_N.mean()), "classes": by_class, "in_place": True, "again": again}
        typer.echo(json.dumps(report | measured))
        return True
    what = f"{counted(len(label_N), 'test image')} of {description.dataset}"
    say(f"{run.name}: {what}, predicted by the nodes and the server")
    say(f"accuracy {percent(float(right_N.mean()))}")
    rows = [(name, str(count), percent(accuracy)) for name, count, accuracy in classes]
    print_table([("class", "images", "accuracy"), *rows])
    say(f"to predict anew in place: {again}")
    return True
