"""The command `psl pretrain`: weights for Uppers, learnt on public images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from psl_flower.cli.output import Json, RunSettings, Workspace, tell
from psl_flower.cli.progress import Progress


def pretrain(
    dataset: Annotated[str, typer.Argument(help="Public images: digits, a hub name, or a folder.", metavar="DATASET")],
    settings: RunSettings = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where the weights go.")] = "uppers.safetensors",
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Learn the Uppers' weights on public images, in one process, and write them to a safetensors file.

    KEY=VALUE are settings of the network that will use the weights, and of this training.
    Then `psl train upper-weights=FILE freeze-uppers-after=0 looks=1` trains the Lower alone on private images. On real
    nodes each operator allows the file by the hash that is printed here. The grid may differ; backbone, width, cut,
    stem, protection and channels must be the same. Rerun an interrupted command: it continues.
    """
    from psl_flower.baselines.pretraining import pretrain as learn
    from psl_flower.cli.train import read_settings
    from psl_flower.engine.automatic_settings import planned
    from psl_flower.kinds import Train
    from psl_flower.stores.prepare import prepare_stores
    from psl_flower.text import expanded

    _, kind = read_settings([f"dataset={dataset}", "stores=plain", *(settings or [])], workspace=workspace)
    if type(kind) is not Train or kind.config.training.freeze_uppers_after >= 0:
        raise typer.BadParameter(
            "psl pretrain only trains, from scratch; leave out settings of other runs and frozen Uppers"
        )
    file = expanded(out, "--out").absolute()
    with Progress() as progress:
        stores = prepare_stores(kind.config, progress.steps)
        kind.check(kind.find(), stores.description)
        found = learn(planned(kind.config, stores.description), stores, Path(file), progress.steps)
    report = {
        "file": str(found.file),
        "hash": found.name,
        "accuracy": found.accuracy,
        "steps": found.steps,
        "images": found.images,
    }
    tell(
        report,
        [
            f"{found.file}: Uppers of {found.steps} steps on {found.images} images; test accuracy {found.accuracy:.2%}",
            f"{found.name}",
            f"use them: psl train upper-weights={out} freeze-uppers-after=0 looks=1 dataset=...",
            f"each node allows them with --node-config \"allow-upper-weights='{found.name}'\"",
        ],
        as_json,
    )
