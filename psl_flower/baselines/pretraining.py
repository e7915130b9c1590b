"""Uppers learnt on public images in one process, for runs whose Uppers are frozen early or from the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from psl_flower.config import RunConfig
from psl_flower.engine.checkpoints import load_state
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.pretrained import write_uppers
from psl_flower.errors import RunError
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.text import OnProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """Result of a pretraining."""

    file: Path  #: File of the Uppers' weights.
    name: str  #: "sha256:..." of the file.
    accuracy: float  #: Accuracy on the public dataset's test images, 0..1.
    #: Steps trained; training images.
    steps: int
    images: int


def pretrain(config: RunConfig, stores: StoreSet, file: Path, progress: OnProgress) -> Pretrained:
    """Train a network in one process, as a run with these settings would, and write its Uppers' weights to `file`.

    FILE.part holds the state after each round: repeat an interrupted pretraining to continue it. `progress` is called
    as progress(what, steps done, steps in all).

    Raises
    ------
    TrainingError
        If the loss is not finite any more.
    RunError
        If the disk refuses, or FILE.part is of another pretraining.
    """
    description, part = stores.description, file.with_name(f"{file.name}.part")
    begun = msgspec.json.encode([config.to_mapping(), description.fingerprint]).decode()
    if part.exists() and load_state(part)["begun"] != begun:
        raise RunError(f"{part}: is of another pretraining; delete it, or name another file")
    with stores.opened() as opened:
        trainer = OneProcessTrainer(config, description, stores.labels, opened, choose_device(config.machine.device))
        trainer.train_resumably(part, "pretraining", progress, advice="choose a lower lr", begun=begun)
        accuracy = trainer.evaluate().accuracy
        name = write_uppers(file, list(trainer.net.uppers))
    part.unlink(missing_ok=True)
    return Pretrained(
        file=file, name=name, accuracy=accuracy, steps=trainer.step, images=len(description.samples_of("train"))
    )
