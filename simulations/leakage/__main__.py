"""Trains networks with several protections and attacks their codes; `python -m simulations.leakage`.

Each network is trained in one process, as a federated run with the same settings is. Then decoders attack what crosses
its cut, of the finished network (one look) and in all epochs joined (all looks), as `psl leak` does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.footprint import wire_bytes
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.inference.evaluation import images_in
from psl_flower.leakage.audit import Attacked, Attacks
from psl_flower.leakage.complete import all_looks
from psl_flower.leakage.images import Known, chosen_samples, most_looks
from psl_flower.leakage.recording import RecordedLooks, Recorder
from psl_flower.leakage.report import UNPAIRED, WEIGHTS, AttackFinding
from psl_flower.leakage.smashed import smashed_bytes
from psl_flower.models import PatchSplitNet
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from simulations import kept
from simulations.kept import Study
from simulations.leakage.cases import Options
from simulations.leakage.results import Floor, Report, Trial, best
from simulations.progress import Progress


def _measure(study: Study[Options, Report]) -> None:
    progress = study.progress
    for case, seed in study.report.missing:
        progress.trial(f"{case}, seed {seed}")
        floors = study.report.floors
        known = next((floor for floor in floors if floor.seed == seed), None)
        trial, floor = _trial(case, seed, study.options, study.folder, progress, known)
        one, joined = best(trial.one_look).ssim.mean, best(trial.all_looks).ssim.mean
        progress.result(f"accuracy {trial.accuracy:.1%}, SSIM {one:.3f}, {trial.looks} looks {joined:.3f}")
        study.keep(trial, floors=floors if known else (*floors, floor))


def _trial(
    case: str, seed: int, options: Options, workspace: Path, progress: Progress, floor: Floor | None
) -> tuple[Trial, Floor]:
    began = time.perf_counter()
    config = options.config_of(case, seed, workspace)
    stores = prepare_stores(config)
    description = stores.description
    blueprint = Blueprint(config, description)
    num_bytes = smashed_bytes(blueprint.network(), description)
    samples = chosen_samples(description.samples_of("train"), options.audit, num_bytes)
    victims, auxiliary = (Known.joined(images_in(stores, samples_N, 256)) for samples_N in samples)
    most = most_looks(options.audit, sum(map(len, samples)), num_bytes)
    net, accuracy, looks = _trained(config, stores, np.concatenate(samples), most, progress)
    attacks = Attacks(description, victims, auxiliary, options.audit, progress.steps)
    one, unique = attacks.of_codes(net)
    joined = all_looks(attacks, net, looks, one)
    up, down = wire_bytes(blueprint, config.training.batch_size)
    trial = Trial(
        case=case, seed=seed, accuracy=accuracy, bytes_up=up, bytes_down=down,
        bits=config.network.cut_protection.bits(description.grid().num_patches), unique=unique,
        one_look=(*one.findings, *_of_levels(attacks, net, one, options)), all_looks=joined.findings,
        looks=joined.best.looks, auxiliary=len(auxiliary.labels_N), seconds=time.perf_counter() - began,
    )  # fmt: skip
    return trial, floor or Floor(seed=seed, findings=(*attacks.of_classes().findings, *attacks.of_logits(net).findings))


def _of_levels(attacks: Attacks, net: PatchSplitNet, one: Attacked, options: Options) -> tuple[AttackFinding, ...]:
    """Return the findings in one look of attackers of the other requested levels."""
    weights = attacks.of_weights(net, one).findings if WEIGHTS in options.levels else ()
    return weights + (attacks.of_unpaired(net).findings if UNPAIRED in options.levels else ())


def _trained(
    config: RunConfig, stores: StoreSet, samples_N: np.ndarray, most: int, progress: Progress
) -> tuple[PatchSplitNet, float, RecordedLooks]:
    """Train; return the network, its accuracy, and what its Lower received of some images."""
    task = Blueprint(config, stores.description).task(stores.labels)
    with stores.opened() as opened:
        trainer = OneProcessTrainer(config, stores.description, stores.labels, opened)
        recorder = Recorder(trainer.net, task, samples_N, most=most, steps=task.total_steps)
        trainer.train(task.total_steps, lambda step, loss, seconds: progress.steps("train", step, task.total_steps))
        accuracy = trainer.evaluate().accuracy
    net: PatchSplitNet = trainer.net
    return net.eval().requires_grad_(False), accuracy, recorder.finish()


_ABOUT = "Train networks with several protections and rebuild images of them; with --out, finished trials are kept."
main = kept.command("leakage", _ABOUT, Options, Report, _measure)

if __name__ == "__main__":
    sys.exit(main())
