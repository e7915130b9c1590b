"""The command `psl leak`: rebuild images of one's own run from what its server received."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from psl_flower.cli.output import Json, RunArgument, RunName, Workspace, print_table, run_named, say
from psl_flower.cli.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from psl_flower.inference.trained_model import TrainedModel
    from psl_flower.leakage.audit import AuditSettings
    from psl_flower.leakage.report import Leakage
    from psl_flower.runs.folder import RunFolder


def leak(
    name: RunArgument = "",
    victims: Annotated[int, typer.Option(min=2, max=10_000, help="Training images to rebuild.")] = 500,
    auxiliary: Annotated[int, typer.Option(min=20, help="Other images of the dataset that the attacker has.")] = 5000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of a decoder over them, at most.")] = 30,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the victims and the decoders' weights.")] = 0,
    run: RunName = "",
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Measure what the smashed data of a run give away: decoders try to rebuild its images.

    The attacker is the server, with other images of the same kind. Works where the run's images are: after a
    simulation, or on the owner's machine. Writes leak/report.json and leak/images.png to the run's folder: images that
    no decoder was trained on, as they are, as rebuilt, and as made from the class alone. This is a lower bound.
    """
    from psl_flower.config import default_workspace
    from psl_flower.errors import RunError
    from psl_flower.inference.trained_model import load_trained_model
    from psl_flower.leakage.audit import AuditSettings
    from psl_flower.leakage.report import sheet_png
    from psl_flower.runs.choosing import choose_run
    from psl_flower.system.files import write_file

    folder = choose_run(default_workspace(workspace), run_named(name, run))
    settings = AuditSettings(victims=victims, auxiliary=auxiliary, epochs=epochs, seed=seed)
    with Progress() as progress:
        report, sheet = _audit(folder, load_trained_model(folder), settings, progress)
    content = msgspec.to_builtins(report) | {"verdict": report.verdict}
    place = folder.path / "leak"
    write_file(place / "report.json", json.dumps(content, indent=1).encode() + b"\n", RunError, parents=True)
    write_file(place / "images.png", sheet_png(sheet), RunError)
    if as_json:
        typer.echo(json.dumps(content))
        return
    print_table(report.rows())
    for line in report.lines():
        say(line)
    say(f"{place / 'images.png'}: originals, rebuilt, and from the class alone")


def _audit(
    folder: RunFolder, trained: TrainedModel, settings: AuditSettings, progress: Progress
) -> tuple[Leakage, Tensor]:
    from psl_flower.inference.evaluation import images_in, stores_of
    from psl_flower.leakage.audit import Audit, Known, audit, chosen_samples, smashed_bytes

    stores, description = stores_of(folder, trained, progress.steps), trained.description
    num_bytes = smashed_bytes([trained.net], description)
    samples = chosen_samples(description.samples_of("train"), settings, num_bytes)
    victims, others = (Known.joined(images_in(stores, samples_N, 256)) for samples_N in samples)
    bits = trained.config.network.cut_protection.bits(description.grid().num_patches)
    attacks = Audit(description, victims, others, settings, progress.steps)
    return audit(attacks, trained.net, run=folder.name, bits=bits)
