"""`psl evaluate` where the patches are on other machines: what the nodes and the server answered last."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from psl_flower.cli.output import find_run, percent, say
from psl_flower.cli.scores import print_scores, scores_json
from psl_flower.text import counted


def evaluated_by_the_nodes(name: str, workspace: str, as_json: bool, table: Path | None = None) -> bool:
    """Print the last evaluation of a run that cannot be evaluated here; return whether it was one.

    An empty `name` stands for the newest run, an empty `workspace` for the default folder. The
    scores by class are written to `table`, if that is given.

    Raises
    ------
    PslError
        If there is no such run, or its files are damaged.
    """
    from psl_flower.engine.classification_scores import scores_of
    from psl_flower.inference.class_table import write_class_table
    from psl_flower.runs.folder import PREDICTIONS_FILE
    from psl_flower.runs.mistakes import check_classes, columns_of
    from psl_flower.stores.prepare import stores_are_here

    run = find_run(name, workspace, with_model=False)
    evaluated = run.has_description and (run.path / PREDICTIONS_FILE).exists()
    if run.instead or not evaluated or (run.has_model and stores_are_here(run.read_config())):
        return False
    description = run.read_description()
    _, label_N, predicted_N, *_ = columns_of(run.path, "test")
    check_classes(run.path, label_N, predicted_N, description.num_classes)
    found = scores_of(label_N, predicted_N, description.num_classes)
    if table:
        write_class_table(found, description.class_names, table)
    again = f"flwr run . FEDERATION --stream --run-config 'predict=\"{run.name}\"'"
    if as_json:
        report = {"run": run.name, "dataset": description.dataset, "images": len(label_N)}
        measured = {"accuracy": found.accuracy, "in_place": True, "again": again}
        typer.echo(json.dumps(report | measured | scores_json(found, description.class_names)))
        return True
    what = f"{counted(len(label_N), 'test image')} of {description.dataset}"
    say(f"{run.name}: {what}, predicted by the nodes and the server")
    say(f"accuracy {percent(found.accuracy)}")
    print_scores(found, description.class_names)
    if table:
        say(str(table))
    say(f"to predict again in place: {again}")
    return True
