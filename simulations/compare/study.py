"""Runs every method with every seed, one after the other; finished trials are kept."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.baselines.whole_image import whole_image_config
from psl_flower.config import RunConfig
from psl_flower.engine.batches import batch_order
from psl_flower.errors import ConfigError, RunError
from psl_flower.launch.running import local_paths
from psl_flower.patches import PatchGrid
from psl_flower.runs.mistakes import confusion
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.machine import count_gpus, usable_cores
from psl_flower.text import slug
from simulations import settings as common
from simulations.compare import federated, worker
from simulations.compare.methods import Options, plan
from simulations.compare.report import Report
from simulations.compare.results import (
    AVERAGING,
    MERGED,
    PATCHES,
    WHOLE,
    Cost,
    Method,
    Settings,
    Trial,
    summarise,
    target_accuracy,
)
from simulations.machine import circumstances
from simulations.progress import Progress
from simulations.reports import save

# Training images shown.
_PICTURED = 5
# Keys that the study decides, each with the option that asks for it, if any.
DECIDED = {
    **common.DECIDED_BUT_THREADS,
    "rounds": "--epochs", "steps-per-round": "--evaluations", "patch-size": "--grids", "stride": "--grids",
    "grid": "--grids", "alpha": "--alphas", "seed": "--seeds", "max-train": "--max-train", "max-test": "--max-test",
    "workspace": "--out", "stores": "",
}  # fmt: skip
# Settings newer than results that are kept, and the values with which those were made: their trials keep their names.
_LATER: dict[str, object] = {
    "margin": 0, "context": 0, "padding": "zeros", "code-noise": 0.0, "gradient-feedback": False,
    "split-column": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Holding:
    """Images (B, C, H, W), uint8, of which nodes hold patches: of this grid, by this assignment.

    Without a grid: whole images, one of each of the first clients.
    """

    name: str
    images_BCHW: NDArray[np.uint8]
    grid: PatchGrid | None = None
    assignment: tuple[int, ...] = ()
    clients: int = 0


class Study:
    """All that is compared; results of trials, stores and runs go to `folder`.

    Raises
    ------
    PslError
        If the dataset cannot be used, or a grid does not fit its images.
    """

    def __init__(self, config: RunConfig, options: Options, folder: Path, progress: Progress) -> None:
        self._options, self._folder, self._progress, self._config_given = options, folder, progress, config
        workspace = folder / "workspace"
        # One process that holds all stores and their keys seals nothing; the data read are the same.
        stores = config.data.stores if options.engine == "flwr" else "plain"
        self._shared = config.replace(
            **local_paths(config.to_mapping()), workspace=str(workspace), seed=options.seeds[0], collect_model=False,
            stores=stores,
        )  # fmt: skip
        self._whole_config = whole_image_config(self._shared)
        self.whole = prepare_stores(self._whole_config, progress.ingesting)
        for line in self.whole.account_lines:
            progress.say(line)
        self.methods = plan(self._shared, options, self.whole.description.image_size)
        self.steps_per_epoch = batch_order(config, self.whole.description).steps_per_epoch
        # Rounds end with an epoch, so a round is a whole part of one.
        wanted = range(min(options.evaluations, self.steps_per_epoch), 0, -1)
        self._evaluations = next(number for number in wanted if self.steps_per_epoch % number == 0)
        for method in self.methods:
            # What contradicts itself, or leaves a client without images, is refused before anything is trained.
            given = self._config(method, options.seeds[0])
            if method.kind == AVERAGING:
                federated.parts(given, method.own, self.whole)
        if options.judge == "valid" and not config.training.valid_fraction:
            raise ConfigError("--judge valid: no image is held back; set valid-fraction, such as valid-fraction=0.1")

    def run(self) -> Report:
        """Do all trials that have no result yet, and return the report.

        Raises
        ------
        PslError
            If a trial fails; the results of those before it stay.
        """
        began, options = circumstances(), self._options
        trials, costs = self._trials(), self._costs()
        target = target_accuracy(trials, self.methods, options.target)
        description = self.whole.description
        settings = Settings(
            config=common.without(self._config_given, DECIDED),
            options=options.told(),
            engine=options.engine,
            epochs=options.epochs,
            train_images=len(description.samples_of("train")),
            test_images=sum(sum(row) for row in trials[0].confusion),
            steps_per_epoch=self.steps_per_epoch,
            classes=description.class_names,
            target=target,
            judge=options.judge,
        )
        summaries = summarise(self.methods, costs, trials, target)
        return Report(
            **began,
            settings=settings,
            measurements=tuple(trials),
            summaries=summaries,
            account=self.whole.account,
        )

    def holdings(self) -> list[Holding]:
        """Return, with pictures, what the nodes of every distributed method hold."""
        samples_N = self.whole.description.samples_of("train")[:_PICTURED]
        images_BCHW = self._images(samples_N)
        found: dict[str, Holding] = {}
        for method in self.methods:
            if method.kind == PATCHES and method.group not in found:
                description = self._stores(method).description
                found[method.group] = Holding(method.group, images_BCHW, description.grid(), description.assignment)
            elif method.kind == AVERAGING and method.own["partition"] not in found:
                parts = federated.parts(self._config(method, self._options.seeds[0]), method.own, self.whole)
                first_B = np.array([part[0] for part in parts[:_PICTURED]])
                found[str(method.own["partition"])] = Holding(method.name, self._images(first_B), clients=len(parts))
        return list(found.values())

    def _images(self, samples_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        with closing(self.whole.open(0)) as store:
            images_BCHW: NDArray[np.uint8] = store.read(samples_B)[:, 0]
        return images_BCHW

    def _trials(self) -> list[Trial]:
        """Do or read all trials, seed by seed."""
        options, found = self._options, list[Trial]()
        pending = [(method, seed) for seed in options.seeds for method in self.methods]
        clock = _Clock(len(pending))
        for number, (method, seed) in enumerate(pending, start=1):
            engine = self._engine(method)
            config, absent = self._config(method, seed), self._absent(method)
            name = trial_name(method, seed, engine, config, absent=absent, judge=options.judge)
            path = self._folder / "trials" / f"{name}.json"
            if path.exists():
                found.append(read_trial(path))
                clock.done(method.name, found[-1].wall_s)
                continue
            self._progress.trial(f"trial {number} of {len(pending)}, {method.name}, seed {seed}")
            clock.begin(method.name)
            ran = circumstances()
            outcome, wall_s = self._do(method, seed, engine, name, clock)
            counts_KK = confusion(outcome.label, outcome.predicted, len(self.whole.description.class_names))
            trial = Trial(
                method=method.name, seed=seed, engine=engine, points=outcome.points, wall_s=wall_s,
                confusion=tuple(tuple(row) for row in counts_KK.tolist()),
                up=outcome.up, down=outcome.down, peak_bytes=outcome.peak_bytes, absent=outcome.absent, **ran,
            )  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, trial)
            clock.done(method.name, wall_s)
            self._progress.result(f"accuracy {trial.accuracy:.2%} after {wall_s:.0f} s")
            found.append(trial)
        return found

    def _costs(self) -> dict[str, Cost]:
        """Return every method's cost."""
        from simulations.compare.costs import cost

        found = {}
        for method in self.methods:
            if method.kind == PATCHES:
                config = self._config(method, self._options.seeds[0])
                found[method.name] = cost(method, config, self._stores(method))
            else:
                found[method.name] = cost(method, self._whole_config, self.whole)
        return found

    def _stores(self, method: Method) -> StoreSet:
        return prepare_stores(self._config(method, self._options.seeds[0]), self._progress.ingesting)

    def _engine(self, method: Method) -> str:
        if method.kind == PATCHES:
            return self._options.engine
        return "flwr" if method.kind == AVERAGING else "one process"

    def _absent(self, method: Method) -> bool:
        """Check if a method is to be measured without some of its Uppers."""
        return self._options.absent and method.kind == PATCHES

    def _config(self, method: Method, seed: int) -> RunConfig:
        """Return the settings of a trial but for its name."""
        epochs, per_epoch = self._options.epochs, self._evaluations
        rounds = {"rounds": epochs * per_epoch, "steps_per_round": self.steps_per_epoch // per_epoch}
        if method.kind == AVERAGING:
            # A round of averaging is its clients' local passes.
            rounds = {"rounds": epochs // self._options.local_epochs, "steps_per_round": 0}
        base = self._whole_config if method.kind == WHOLE else self._shared
        values = base.replace(seed=seed, **rounds).to_mapping() | method.config
        return RunConfig.from_mapping(values)

    def _do(self, method: Method, seed: int, engine: str, name: str, clock: _Clock) -> tuple[worker.Outcome, float]:
        config = self._config(method, seed).replace(run_name=name)
        total = config.training.rounds * (config.training.steps_per_round or 1)

        def show(done: int) -> None:
            what = "averaging" if method.kind == AVERAGING else "training"
            self._progress.step(what, done, total, clock.left(done / total))

        began = time.monotonic()
        if method.kind == AVERAGING:
            outcome = federated.averaging(config, method.own, show)
        elif engine == "flwr":
            outcome = federated.patch_split(config, self.steps_per_epoch, show)
        else:
            kind = method.kind if method.kind in (WHOLE, MERGED) else engine
            threads = config.machine.lower_threads or usable_cores()
            # The one process makes missing stores itself.
            scratch = str(self._folder / "workspace" / "runs" / name)
            job = worker.Job(
                kind=kind, config=config.to_mapping(), threads=threads, folder=scratch, absent=self._absent(method),
                judge=self._options.judge,
            )  # fmt: skip
            outcome = worker.run(job, show)
        return outcome, time.monotonic() - began


class _Clock:
    """Estimates the remaining time from the trials before."""

    def __init__(self, trials: int) -> None:
        self._left, self._took, self._method, self._began = trials, dict[str, float](), "", 0.0

    def begin(self, method: str) -> None:
        """Show that a trial begins."""
        self._method, self._began = method, time.monotonic()

    def done(self, method: str, wall_s: float) -> None:
        """Show that a trial has ended, or was done before."""
        self._left -= 1
        self._took[method] = wall_s

    def left(self, share: float) -> float | None:
        """Return the seconds left, if a share 0..1 of this trial is done; None while nothing is known."""
        spent = time.monotonic() - self._began
        known = self._took.get(self._method, spent / share if share > 0 else None)
        if known is None:
            return None
        usual = sum(self._took.values()) / len(self._took) if self._took else known
        return max(0.0, known - spent) + (self._left - 1) * usual


def trial_name(
    method: Method, seed: int, engine: str, config: RunConfig, *, absent: bool = False, judge: str = "test"
) -> str:
    """Return a trial's name: readable, and different if anything that decides its result differs.

    Cores and GPUs are among that: other numbers of threads add in other orders.
    """
    decisive = {
        key: value
        for key, value in config.to_mapping().items()
        if key not in ("workspace", "stores", "run-name", "progress-every-s") and (key, value) not in _LATER.items()
    }
    asked = [*["absent"] * absent, *[judge] * (judge != "test")]
    what = (method.kind, method.own, engine, decisive, usable_cores(), count_gpus(), *asked)
    digest = hashlib.sha256(msgspec.json.encode(what, order="sorted"))
    return f"{slug(method.name, 60)}-seed{seed}-{digest.hexdigest()[:8]}"


def read_trial(path: Path) -> Trial:
    """Read the result of a trial; raises RunError if it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trial)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunError(
            f"{path}: is no result of a trial: {str(error)[:200]}; delete it to have it done again"
        ) from error
