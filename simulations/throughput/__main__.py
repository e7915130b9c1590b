"""The command and its sessions: one process and a transport take turns, so that the machine's drift hits both equally.

`python -m simulations.throughput` also makes the page of all benchmarks' result files (--page).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.launch.running import local_paths
from psl_flower.launch.sizing import simulation
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from simulations import page, reports
from simulations import settings as common
from simulations.command_line import BATCH_SIZE, WIRE, ReportBenchmark, Shortcut, Workspace, check_out
from simulations.machine import circumstances
from simulations.progress import Progress
from simulations.throughput import federated
from simulations.throughput.one_process import Job, Opponent
from simulations.throughput.results import ONE_PROCESS, Measurement, Options, Report, Settings, summarise
from simulations.throughput.turns import Turns

# Keys that the benchmark decides, each with the option that asks for it, if any.
DECIDED = {
    **common.DECIDED,
    "rounds": "--steps", "steps-per-round": "--steps", "transport": "--transports", "workspace": "--keep",
}  # fmt: skip


class Throughput(ReportBenchmark[Options]):
    """The benchmark."""

    name, options, decided = "throughput", Options, DECIDED
    about = (
        "Measure the same training through Flower and in one process, in turns, on this machine: while one computes, "
        "the other is stopped, so that a machine whose speed drifts does not change their ratio."
    )
    shortcuts = (
        Shortcut("patch-size", "HEIGHTxWIDTH in pixels [half the image each way: 2x2 patches]"),
        BATCH_SIZE,
        WIRE,
        Shortcut("autocast", "bfloat16 autocast, in all modes", flag=True),
    )
    keep = "keep stores and runs, and print where"

    def make_parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command's arguments."""
        parser = super().make_parser()
        text = "measure nothing: make docs/benchmarks.md (--out) of result files"
        parser.add_argument("--page", nargs="*", metavar="FILE", help=text)
        return parser

    def run(self, given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        """Measure, or make the page."""
        if given.page is None:
            super().run(given, parser)
            return
        if given.settings or given.json:
            parser.error("--page takes result files and --out, nothing else")
        check_out(given.out)
        text = page.render(page.load_all(given.page))
        if given.out is None:
            print(text, end="")
        else:
            reports.write(given.out, text.encode())

    def measure(self, config: RunConfig, options: Options, workspace: Workspace, progress: Progress) -> Report:
        """Measure and return the report."""
        began = circumstances()
        options = replace(options, turns=min(options.turns, options.steps))
        shared = config.replace(
            **local_paths(config.to_mapping()),
            workspace=str(workspace.path), rounds=1, steps_per_round=options.total_steps, evaluate_every=0,
            collect_model=False,
        )  # fmt: skip
        stores = prepare_stores(shared, progress.ingesting)
        nodes = int(simulation(stores.description.num_uppers)["num-supernodes"])
        settings = Settings(
            **asdict(options),
            config=common.without(config, DECIDED),
            upper_threads=max(1, options.threads // nodes),
            nodes=nodes,
        )
        sessions = _Sessions(shared, settings, stores, progress, workspace.stays)
        measurements = []
        for repetition in range(1, options.repetitions + 1):
            for mode in options.transports:
                progress.trial(f"repetition {repetition} of {options.repetitions}, {mode} and one process")
                measurements += sessions.measure(mode, f"{mode}-{repetition}")
        return Report(
            **began,
            settings=settings,
            measurements=tuple(measurements),
            summaries=summarise(settings, measurements),
        )


class _Sessions:
    """All that a session needs, and how many there were."""

    def __init__(self, config: RunConfig, settings: Settings, stores: StoreSet, progress: Progress, keep: bool) -> None:
        self._config, self._settings, self._stores, self._keep = config, settings, stores, keep
        self._progress, self._number = progress, 0
        order = Blueprint(config, stores.description).task(stores.labels).order
        self._batch_sizes = tuple(len(order.samples(step)) for step in range(settings.total_steps))

    def measure(self, mode: str, name: str) -> list[Measurement]:
        """Measure the one process and a transport, whose run gets this name, in turns."""
        settings, progress = self._settings, self._progress
        self._number += 1
        total = settings.total_steps
        with Opponent(
            self._job(), self._config.wire.step_timeout_s, lambda done: progress.step(ONE_PROCESS, done, total)
        ) as opponent:
            opponent.wait_for(settings.warmup)
            opponent.hold()
            federated_ = federated.measure(
                self._federated(mode, name),
                self._stores,
                self._number,
                settings.warmup,
                self._batch_sizes,
                lambda done: progress.step(mode, done, total),
                Turns(settings, opponent),
                keep=self._keep,
            )
            alone = opponent.measured(self._number, settings.warmup, self._batch_sizes)
        progress.result(
            f"{federated_.images_per_s:.1f} and {alone.images_per_s:.1f} images/s, "
            f"ratio {federated_.images_per_s / alone.images_per_s:.3f}; "
            f"first step after {federated_.total_startup_s:.1f} and {alone.total_startup_s:.1f} s"
        )
        return [alone, federated_]

    def _job(self) -> Job:
        # A single process has no wire; codecs here would only round what crosses the cut.
        codecs = {} if self._settings.round_at_cut else {"wire_activations": "float32", "wire_gradients": "float32"}
        return Job(
            config=self._config.replace(**codecs).to_mapping(),
            threads=self._settings.threads,
            steps=self._settings.total_steps,
        )

    def _federated(self, mode: str, name: str) -> RunConfig:
        settings = self._settings
        # A deadline keeps running while the run is held: for a turn of steps, each of which may take as long.
        turn = settings.steps // settings.turns + 2
        return self._config.replace(
            transport=mode,
            lower_threads=settings.threads,
            upper_threads=settings.upper_threads,
            run_name=name,
            step_timeout_s=self._config.wire.step_timeout_s * (turn + 1),
        )


BENCHMARK = Throughput()

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
