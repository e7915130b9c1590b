"""Accuracy, bytes and what images give away, for several protections; `python -m simulations.leakage`.

Each network is trained in one process, as a federated run with the same settings is. Then decoders attack its codes, of
the finished network (one look) and of the states after all epochs joined (all looks), as `psl leak` does.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from psl_flower.cli.output import exit_status
from psl_flower.config import RunConfig, fields
from psl_flower.config.fields import setting
from psl_flower.engine.batches import batch_order
from psl_flower.engine.build import Blueprint
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.inference.evaluation import images_in
from psl_flower.leakage.audit import Audit, AuditSettings, Known, chosen_samples, smashed_bytes
from psl_flower.leakage.report import CODES, Finding
from psl_flower.models import PatchSplitNet
from psl_flower.patches.description import StoreSetDescription
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.wire.codecs import get_codec
from simulations import reports
from simulations.command_line import check_out, deliver, new_parser, workspace_of
from simulations.machine import circumstances
from simulations.options import one_of, read_options, several, texts
from simulations.progress import Progress
from simulations.reports import Cells, Row, Values
from simulations.tables import again, dataset_name

_CODE: Values = {"cut": "layer4", "protection": "code", "wire-gradients": "float16"}
CASES: dict[str, Values] = {
    "plain-layer1": {"wire-activations": "bfloat16", "wire-gradients": "bfloat16"},
    "plain-layer4": {"cut": "layer4", "wire-activations": "bfloat16", "wire-gradients": "bfloat16"},
    "narrow32-layer4": {
        "cut": "layer4", "protection": "narrow", "code-size": 32, "wire-activations": "bfloat16",
        "wire-gradients": "bfloat16",
    },
    "code32-layer4": {**_CODE, "code-size": 32},
    "code16-layer4": {**_CODE, "code-size": 16},
}  # fmt: skip
_EACH = ("plain-layer1", "code32-layer4", "code16-layer4")


def _seed(text: str) -> int:
    return int(text)


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What is trained and attacked, and how hard."""

    dataset: str = setting("digits", "digits, a hub name or a folder, such as ../shared/data/cifar10")
    cases: tuple[str, ...] = several(_EACH, f"of {','.join(CASES)}", one_of(tuple(CASES)))
    seeds: tuple[int, ...] = several((0,), "seeds; every case is trained with each", _seed)
    width: int = setting(16, "width of the backbone", least=1, most=1024)
    images: int = setting(6000, "training images", least=64)
    test_images: int = setting(2000, "test images", least=1)
    epochs: int = setting(4, "passes over the training images", least=1)
    victims: int = setting(200, "training images that are attacked", least=2, most=10_000)
    auxiliary: int = setting(2000, "other training images that the attacker has", least=20)
    decoder_epochs: int = setting(12, "passes of a decoder over them at most", least=1)

    @property
    def audit(self) -> AuditSettings:
        """How hard the attacker tries."""
        return AuditSettings(victims=self.victims, auxiliary=self.auxiliary, epochs=self.decoder_epochs)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One network, trained and attacked.

    Attributes
    ----------
    case, seed : str, int
        Which.
    accuracy : float
        On the test images.
    bytes_up, bytes_down : float
        Payload of an image and step, of all nodes together.
    bits : int or None
        Of an image's codes in a look; None where they are no codes.
    unique : float
        Share of victims whose codes no other victim has.
    one_look, all_looks : tuple of Finding
        The attacks on the finished network, and on all epochs' states together; the latter only where codes cross.
    auxiliary : int
        Images that the attacker had, of those asked.
    seconds : float
        Of training and attacks.
    """

    case: str
    seed: int
    accuracy: float
    bytes_up: float
    bytes_down: float
    bits: int | None
    unique: float
    one_look: tuple[Finding, ...]
    all_looks: tuple[Finding, ...]
    auxiliary: int
    seconds: float


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """What the same attackers rebuild without codes, for a seed."""

    seed: int
    findings: tuple[Finding, ...]


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file."""

    benchmark: str = "leakage"
    version: int = 1
    settings: Options
    measurements: tuple[Trial, ...] = ()
    floors: tuple[Floor, ...] = ()

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        asked = self.settings
        return (
            f"What codes give away: {dataset_name(asked.dataset)}, {asked.images} training images, "
            f"width {asked.width}, {asked.epochs} epochs; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """A row for each network, then the floors."""
        head: Row = (
            "case", "seed", "accuracy, %", "bytes up", "bytes down", "bits", "SSIM, one look", "nearest, %",
            "SSIM, all looks", "of their own, %",
        )  # fmt: skip
        rows: list[Row] = []
        for trial in self.measurements:
            one, joined = _best(trial.one_look), _best(trial.all_looks) if trial.all_looks else None
            rows.append((
                trial.case, str(trial.seed), f"{100 * trial.accuracy:.1f}", f"{trial.bytes_up:g}",
                f"{trial.bytes_down:g}", str(trial.bits or "-"), _similarity(one), f"{100 * one.first:.1f}",
                _similarity(joined) if joined else "-", f"{100 * trial.unique:.1f}",
            ))  # fmt: skip
        floor_rows: list[Row] = [
            (found.knows, found.attacker, str(floor.seed), _similarity(found), f"{100 * found.first:.1f}")
            for floor in self.floors
            for found in floor.findings
        ]
        return (head, rows), (("knows", "attacker", "seed", "SSIM", "nearest, %"), floor_rows)

    @property
    def notes(self) -> str:
        """How to read the tables."""
        asked = self.settings
        return (
            f"Attacks on {asked.victims} training images with {asked.auxiliary} others at most, {asked.decoder_epochs} "
            "epochs of each decoder at most; the better decoder by auxiliary images, mean SSIM and its 95 % interval "
            "over the images. Nearest: rebuilt images whose nearest image, of all attacked, is the true one. All "
            "looks: codes of the states after every epoch together. Of their own: images whose codes no other has. "
            "Bytes are the payload of an image and step over all nodes. Accuracy is that of so few epochs, far from "
            f"what longer training reaches, and stronger attackers may find more. {self.load}"
        )

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        return again("leakage", texts(self.settings).items(), {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    about = "Train networks with several protections and rebuild images of them; with --out, finished trials are kept."
    parser = new_parser("leakage", about, Options)
    return exit_status(lambda: _measure(parser.parse_args(arguments)))


def _measure(given: argparse.Namespace) -> None:
    check_out(given.out)
    options, began = read_options(given, Options), circumstances()
    report = reports.begun(given.out, Report(**began, settings=options))
    with workspace_of("psl-leakage-") as workspace, Progress() as progress:
        for seed in options.seeds:
            for case in options.cases:
                if any((trial.case, trial.seed) == (case, seed) for trial in report.measurements):
                    continue
                progress.trial(f"{case}, seed {seed}")
                trial, floor = _trial(case, seed, options, workspace.path, progress, _floor_of(report, seed))
                floors = report.floors if _floor_of(report, seed) else (*report.floors, floor)
                report = msgspec.structs.replace(report, measurements=(*report.measurements, trial), floors=floors)
                progress.result(f"accuracy {trial.accuracy:.1%}, SSIM {_best(trial.one_look).ssim.mean:.3f}")
                if given.out is not None:
                    reports.save(given.out, report)
    deliver(given, report)


def _floor_of(report: Report, seed: int) -> Floor | None:
    return next((floor for floor in report.floors if floor.seed == seed), None)


def _trial(
    case: str, seed: int, options: Options, workspace: Path, progress: Progress, floor: Floor | None
) -> tuple[Trial, Floor]:
    began = time.perf_counter()
    config = _config(case, seed, options, workspace)
    stores = prepare_stores(config)
    trainer, states = _trained(config, stores, progress)
    net, description = states[-1], stores.description
    samples = chosen_samples(description.samples_of("train"), options.audit, smashed_bytes(states, description))
    victims, auxiliary = (Known.joined(images_in(stores, samples_N, 256)) for samples_N in samples)
    attacks = Audit(description, victims, auxiliary, options.audit, progress.steps)
    bits = config.network.cut_protection.bits(description.grid().num_patches)
    one, unique = attacks.of_codes([net])
    looks = attacks.of_codes(states)[0].findings if bits is not None and len(states) > 1 else ()
    up, down = _bytes(config, description)
    trial = Trial(
        case=case, seed=seed, accuracy=trainer.evaluate().accuracy, bytes_up=up, bytes_down=down, bits=bits,
        unique=unique, one_look=one.findings, all_looks=looks, auxiliary=len(auxiliary.labels_N),
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    return trial, floor or Floor(seed=seed, findings=attacks.of_classes().findings)


def _config(case: str, seed: int, options: Options, workspace: Path) -> RunConfig:
    shared: Values = {
        "dataset": options.dataset, "seed": seed, "backbone-width": options.width, "max-train": options.images,
        "max-test": options.test_images, "rounds": options.epochs, "batch-size": 64, "lr": 0.05,
        "stores": "plain", "workspace": str(workspace), "flip": options.dataset != "digits",
    }  # fmt: skip
    return RunConfig.from_mapping(shared | CASES[case])


def _trained(
    config: RunConfig, stores: StoreSet, progress: Progress
) -> tuple[OneProcessTrainer, tuple[PatchSplitNet, ...]]:
    """Train, and return the trainer and copies of the network after every epoch."""
    opened = [stores.open(m) for m in range(stores.description.num_uppers)]
    trainer = OneProcessTrainer(config, stores.description, stores.labels, opened)
    steps, total = batch_order(config, stores.description).steps_per_epoch, config.training.rounds
    states = []
    for _ in range(total):
        trainer.train(steps, lambda step, loss, seconds: progress.steps("train", step, steps * total))
        states.append(copy.deepcopy(trainer.net).eval().requires_grad_(False))
    return trainer, tuple(states)


def _bytes(config: RunConfig, description: StoreSetDescription) -> tuple[float, float]:
    """Return payload bytes of an image and step, up and down, of all Uppers together."""
    size = config.training.batch_size
    shapes = [(size, *shape) for shape in Blueprint(config, description).smashed_shapes().values()]
    up, down = (
        sum(get_codec(codec).nbytes(shape) for shape in shapes) / size
        for codec in (config.smashed_codec, config.wire.wire_gradients)
    )
    return up, down


def _best(findings: Sequence[Finding]) -> Finding:
    return max((found for found in findings if found.knows == CODES), key=lambda found: found.validation_ssim)


def _similarity(found: Finding) -> str:
    return f"{found.ssim.mean:.3f} ({found.ssim.low:.3f} to {found.ssim.high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
