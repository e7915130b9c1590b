"""Uppers learnt on public images in one process, for runs whose Uppers are frozen early or from the start."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from psl_flower.config import RunConfig
from psl_flower.engine.checkpoints import load_state, save_state
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.pretrained import write_uppers
from psl_flower.errors import RunError, TrainingError
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """What a pretraining came to."""

    file: Path  #: Of the Uppers' weights.
    name: str  #: "sha256:..." of the file.
    accuracy: float  #: On the public dataset's test images, 0..1.
    #: Steps trained; training images.
    steps: int
    images: int


def pretrain(config: RunConfig, stores: StoreSet, file: Path, progress: Progress) -> Pretrained:
    """Train a network as a run with these settings would, in one process, and write its Uppers' weights.

    An interrupted one continues from its last round when it is asked for again: FILE.part holds it until then.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    stores : StoreSet
        Of the public images.
    file : Path
        Where the weights go.
    progress : callable
        Called as progress(what, steps done, steps in all).

    Raises
    ------
    TrainingError
        If the loss is not finite any more.
    RunError
        If the disk refuses, or FILE.part is of another pretraining.
    """
    description, part = stores.description, file.with_name(f"{file.name}.part")
    begun = msgspec.json.encode([config.to_mapping(), description.fingerprint]).decode()
    with contextlib.ExitStack() as opened:
        parts = [opened.enter_context(contextlib.closing(stores.open(m))) for m in range(description.num_uppers)]
        trainer = OneProcessTrainer(config, description, stores.labels, parts, choose_device(config.machine.device))
        total, per_round = trainer.total_steps, trainer.steps_per_round
        if part.exists():
            state = load_state(part)
            if state["begun"] != begun:
                raise RunError(f"{part}: is of another pretraining; delete it, or name another file")
            trainer.load_state_dict(state)

        def on_step(step: int, loss: float, _: float) -> None:
            if not math.isfinite(loss):
                raise TrainingError(f"pretraining: the loss is not finite at step {step}; choose a lower lr")
            progress("pretraining", step, total)

        while trainer.step < total:
            trainer.train(min(per_round - trainer.step % per_round, total - trainer.step), on_step)
            save_state(part, trainer.state_dict() | {"begun": begun})
        accuracy = trainer.evaluate().accuracy
        name = write_uppers(file, list(trainer.net.uppers))
    part.unlink(missing_ok=True)
    return Pretrained(file=file, name=name, accuracy=accuracy, steps=total, images=len(description.samples_of("train")))
