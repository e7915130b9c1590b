"""The command `psl leak`: rebuild images of one's own run from what its server received."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from psl_flower.cli.output import Json, RunArgument, RunName, Workspace, find_run, print_table, say
from psl_flower.cli.progress import Progress

if TYPE_CHECKING:
    from psl_flower.config import RunConfig
    from psl_flower.inference.trained_model import TrainedModel
    from psl_flower.leakage.complete import Pictures
    from psl_flower.leakage.images import AuditSettings
    from psl_flower.leakage.report import Leakage
    from psl_flower.runs.folder import RunFolder

_QUICK = {"auxiliary": 500, "epochs": 8, "looks": 0}


def leak(
    name: RunArgument = "",
    victims: Annotated[
        int | None, typer.Option(min=2, max=10_000, help="Training images to rebuild [500, or a fifth of few].")
    ] = None,
    auxiliary: Annotated[
        int | None, typer.Option(min=20, help="Other images of the dataset that the attacker has [5000].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes of a decoder over them, at most [30].")] = None,
    looks: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs whose codes are joined, at most [32]; 0: one look, nothing is trained again."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Weaker attackers, in less time: --looks 0 --epochs 8 --auxiliary 500, unless given."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the victims and the decoders' weights.")] = 0,
    images: Annotated[
        str, typer.Option(help="Attack the test images of this dataset in place of the run's own; one look.")
    ] = "",
    run: RunName = "",
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Measure what a run's smashed data reveal: decoders try to rebuild its images.

    The attacker is the server with everything that it received in training. To reproduce that, the run is trained again
    in one process; then several decoders learn for up to --epochs passes, which for a small run takes far longer than
    its training. How long is estimated at the start. --quick attacks only the finished network, with weaker attackers,
    and the report says so. All this works where the run's images are: after a simulation, or on the owner's machine. On
    a federation's server name other images of the same kind with --images. Writes leak/report.json and leak/page.html,
    with images that no decoder was trained on, to the run's folder. The result is a lower bound.
    """
    from psl_flower.errors import RunError
    from psl_flower.inference.trained_model import load_trained_model
    from psl_flower.kinds.audit import FOLDER
    from psl_flower.leakage.images import AuditSettings
    from psl_flower.leakage.page import write
    from psl_flower.runs.folder import CONFIG_FILE, MODEL_FILE
    from psl_flower.stores.prepare import stores_are_here

    folder = find_run(name, workspace, run)
    if not images and not stores_are_here(folder.read_config()):
        config = folder.path / CONFIG_FILE
        raise RunError(
            f"{folder.name}: its images are on the nodes, and an audit needs some; name others of the same kind with "
            "--images, or, where its own may be together, simulate the same training with psl train "
            f"--config {config} dataset=IMAGES, and audit that"
        )
    if images and not (folder.model / MODEL_FILE).exists():
        raise RunError(
            f"{folder.name}: its Uppers' weights are on the nodes, who can answer for them: flwr run with "
            f"audit={folder.name} and audit-images={images} (docs/privacy.md)"
        )
    given = {"auxiliary": auxiliary, "epochs": epochs, "looks": looks}
    chosen = (_QUICK if quick else {}) | {key: value for key, value in given.items() if value is not None}
    settings = AuditSettings(victims=victims or 0, seed=seed, **chosen)
    with Progress(every_s=30.0) as progress:
        trained = load_trained_model(folder)
        if images:
            report, pictures = _elsewhere(folder, trained, images, settings, progress)
        else:
            report, pictures = _audit(folder, trained, settings, progress)
    content, page = write(folder.path / FOLDER, report, pictures)
    if as_json:
        typer.echo(json.dumps(content))
        return
    print_table(report.rows())
    for line in report.lines():
        say(line)
    say(f"{page}: originals beside what was rebuilt")


def _audit(
    folder: RunFolder, trained: TrainedModel, settings: AuditSettings, progress: Progress
) -> tuple[Leakage, list[Pictures]]:
    import numpy as np

    from psl_flower.engine.automatic_settings import split_training
    from psl_flower.inference.evaluation import images_in, stores_of
    from psl_flower.leakage.audit import Attacks
    from psl_flower.leakage.complete import audit
    from psl_flower.leakage.effort import Course, forecast
    from psl_flower.leakage.images import Known, chosen_samples, most_looks
    from psl_flower.leakage.replay import replay, threads_of
    from psl_flower.leakage.smashed import smashed_bytes
    from psl_flower.system.devices import torch_threads

    stores, description = stores_of(folder, trained, progress.steps), trained.description
    num_bytes = smashed_bytes(trained.net, description)
    # Training images held back to validate on are never sent in training.
    pool_N, _ = split_training(trained.config, description)
    samples = chosen_samples(pool_N, settings, num_bytes)
    victims, others = (Known.joined(images_in(stores, samples_N, 256)) for samples_N in samples)
    most, again = most_looks(settings, sum(map(len, samples)), num_bytes), None
    known, wanted = len(others.labels_N), len(victims.labels_N)
    effort = forecast(trained.net, trained.description, settings, known, wanted, joined=bool(most))
    progress.say(effort.line(settings, known))
    if most:
        again = replay(
            _as_begun(folder, trained.config), stores, trained.net.state_dict(), np.concatenate(samples),
            most=most, steps=_trained_steps(folder), threads=threads_of(folder), on_progress=progress.steps,
        )  # fmt: skip
    bits = trained.config.network.cut_protection.bits(description.grid().num_patches)
    attacks = Attacks(description, victims, others, settings, Course(progress.show, effort).note)
    with torch_threads(effort.threads):
        return audit(attacks, trained.net, run=folder.name, bits=bits, replay=again)


def _elsewhere(
    folder: RunFolder, trained: TrainedModel, dataset: str, settings: AuditSettings, progress: Progress
) -> tuple[Leakage, list[Pictures]]:
    from psl_flower.inference.evaluation import other_test_images
    from psl_flower.leakage.effort import Course, forecast
    from psl_flower.leakage.elsewhere import audit_elsewhere
    from psl_flower.leakage.images import MOST_VICTIMS
    from psl_flower.system.devices import torch_threads

    images = other_test_images(trained, dataset)
    known, wanted = settings.auxiliary, settings.victims or MOST_VICTIMS  # there may be fewer
    effort = forecast(trained.net, trained.description, settings, known, wanted, joined=False)
    progress.say(effort.line(settings, known))
    with torch_threads(effort.threads):
        return audit_elsewhere(
            trained.net, trained.config, trained.description, (dataset, images.batches), settings, run=folder.name,
            on_progress=Course(progress.show, effort).note,
        )  # fmt: skip


def _as_begun(folder: RunFolder, config: RunConfig) -> RunConfig:
    """Return a run's settings with its own copy of the weights that its Uppers began with, if there were some."""
    from psl_flower.engine.pretrained import FILE

    copy = folder.path / FILE
    return config.replace(upper_weights=str(copy)) if config.network.upper_weights and copy.exists() else config


def _trained_steps(folder: RunFolder) -> int:
    """Return the steps that a run trained; 0 if it does not say."""
    from psl_flower.runs.best_checkpoint import load_best

    best, status = load_best(folder), folder.read_status()
    if best is not None:
        return best.trained
    return status.step if status is not None else 0
