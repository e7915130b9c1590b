"""The command and its trials: one deployment, a run of it for each delay in turn, and the one process between them."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.errors import RunError
from psl_flower.launch.environment import environment
from psl_flower.launch.running import local_paths
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from simulations import settings as common
from simulations.command_line import BATCH_SIZE, WIRE, ReportBenchmark, Workspace
from simulations.machine import circumstances
from simulations.options import text_of
from simulations.progress import Progress
from simulations.separate_hosts.deployment import Deployment
from simulations.separate_hosts.links import has_netem, round_trip_s, slowed
from simulations.separate_hosts.network import Network, why_not
from simulations.separate_hosts.results import Measurement, Options, Report, Settings, summarise
from simulations.throughput import one_process
from simulations.throughput.federated import evaluation_bytes, read_steps
from simulations.throughput.results import PARTS

# Keys that the benchmark decides, each with the option that asks for it, if any.
DECIDED = {
    **common.DECIDED,
    "rounds": "--steps", "steps-per-round": "--steps", "transport": "", "workspace": "", "stores": "", "keys": "",
    "owner": "", "patch-size": "", "stride": "", "fit": "", "margin": "", "uppers": "", "assignment": "",
    "image-size": "", "image-column": "", "label-column": "", "test-fraction": "", "exchange-host": "",
    "exchange-port": "", "exchange-advertise": "", "on-missing-node": "",
}  # fmt: skip
# Of the others, those that the owner uses; the runs find the owner's dataset.
_OWNERS = ("dataset", "max-train", "max-test")
# Of those that the benchmark decides, the ones that it passes to the runs.
_RUNS = (
    "rounds", "steps-per-round", "evaluate-every", "collect-model", "transport", "lower-threads", "upper-threads",
)  # fmt: skip
NUM_NODES = 4
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_POLL_S = 1.0


class SeparateHosts(ReportBenchmark[Options]):
    """The benchmark."""

    name, options, decided = "separate_hosts", Options, DECIDED
    about = (
        "Measure training between hosts of their own (network namespaces; needs root) with TLS, by delay of their "
        "links, beside the same in one process."
    )
    shortcuts = (BATCH_SIZE, WIRE)
    keep = "keep the hosts' folders (logs, stores, runs), and print where"

    def measure(self, config: RunConfig, options: Options, workspace: Workspace, progress: Progress) -> Report:
        """Measure and return the report."""
        reason = why_not()
        if reason:
            raise RunError(f"this machine does not allow separate hosts: {reason}")
        began = circumstances()
        shared = config.replace(
            **local_paths(config.to_mapping()),
            workspace=str(workspace.path / "one-process"), rounds=1, steps_per_round=options.total_steps,
            evaluate_every=0, collect_model=False, transport="stream", lower_threads=options.threads,
            upper_threads=max(1, options.threads // NUM_NODES),
        )  # fmt: skip
        stores = prepare_stores(shared, progress.ingesting)
        task = Blueprint(shared, stores.description).task(stores.labels)
        total_steps = options.total_steps
        if any(len(task.order.samples(step)) < config.training.batch_size for step in range(total_steps)):
            raise RunError(
                f"an epoch's smaller last batch is among the {total_steps} steps: more images or fewer steps"
            )
        with _deployed(shared, workspace.path / "hosts", progress) as deployment:
            settings = Settings(
                **asdict(options),
                config=common.without(config, DECIDED),
                upper_threads=shared.machine.upper_threads,
                nodes=NUM_NODES,
                netem=has_netem(deployment.network),
                congestion_control=_CONGESTION_CONTROL.read_text("ascii").strip(),
            )
            measurements = _Trials(shared, options, stores, deployment, progress).measure()
        return Report(
            **began,
            settings=settings,
            measurements=measurements,
            summaries=summarise(options.delays_ms, measurements),
        )


@contextlib.contextmanager
def _deployed(config: RunConfig, folder: Path, progress: Progress) -> Iterator[Deployment]:
    """Yield the hosts with everything running, and end it."""
    progress.trial("SuperLink and SuperNodes")
    given = common.without(config, (*DECIDED, *_OWNERS)) | {key: config.to_mapping()[key] for key in _RUNS}
    settings = [f"{key}={text_of(value)}" for key, value in given.items()]
    network = Network(folder, NUM_NODES, environment())
    try:
        ingest = ("--max-train", str(config.data.max_train), "--max-test", str(config.data.max_test))
        deployment = Deployment(network, config.data.dataset, ingest, settings)
        deployment.start()
        yield deployment
    finally:
        network.close()


class _Trials:
    """All that the trials need."""

    def __init__(
        self, config: RunConfig, options: Options, stores: StoreSet, deployment: Deployment, progress: Progress
    ) -> None:
        self._config, self._options, self._stores = config, options, stores
        self._deployment, self._progress = deployment, progress

    def measure(self) -> tuple[Measurement, ...]:
        """Run them all: each between two runs of the one process, of which neighbours share one."""
        found = []
        before_s = self._one_process()
        for repetition in range(1, self._options.repetitions + 1):
            for delay_ms in self._options.delays_ms:
                name = f"repetition {repetition} of {self._options.repetitions}, {delay_ms:g} ms"
                self._progress.trial(name)
                round_trip, run = self._train(f"delay-{delay_ms:g}-{repetition}", delay_ms / 1000)
                after_s = self._one_process()
                measured = self._read(run, repetition, delay_ms, round_trip, before_s, after_s)
                rates = f"{measured.images_per_s:.1f} images/s, one process {measured.one_process:.1f}"
                self._progress.say(f"{name}: {rates}")
                found.append(measured)
                before_s = after_s
        return tuple(found)

    def _one_process(self) -> tuple[float, ...]:
        """Return the seconds of the timed steps of the same training in one process."""
        self._progress.trial("one process")
        # A single process has no wire; codecs here would only round what crosses the cut.
        config = self._config.replace(wire_activations="float32", wire_gradients="float32")
        job = one_process.Job(
            config=config.to_mapping(), threads=self._options.threads, steps=self._options.total_steps
        )
        warmup, sizes = self._options.warmup, (config.training.batch_size,) * self._options.total_steps
        with one_process.Opponent(
            job, config.wire.step_timeout_s, lambda done: self._show("one process", done)
        ) as opponent:
            return opponent.measured(0, warmup, sizes).step_s[warmup:]

    def _train(self, name: str, delay_s: float) -> tuple[float, RunFolder]:
        """Run the deployment with this delay of all links; return the round trip in seconds, and the run."""
        deployment = self._deployment
        delay = slowed(deployment.network, range(NUM_NODES), delay_s) if delay_s else contextlib.nullcontext()
        deployment.wait_for_nodes(NUM_NODES)
        with delay:
            round_trip = round_trip_s(deployment.network, 0)
            with deployment.training(f"run-name={name}") as process:
                self._follow(process, deployment.run(name))
        status = deployment.status(name)
        if status.state != "completed":
            raise RunError(f"the run between hosts failed: {status.message.removeprefix('error: ')}")
        return round_trip, deployment.run(name)

    def _follow(self, process: subprocess.Popen[bytes], run: RunFolder) -> None:
        """Wait for the end of a run, which must give signs of life."""
        longest_s = self._config.wire.node_timeout_s + self._config.wire.step_timeout_s
        seen, deadline = 0.0, time.monotonic() + longest_s
        while process.poll() is None:
            status = run.read_status()
            if status is not None and status.updated != seen:
                seen, deadline = status.updated, time.monotonic() + longest_s
                self._show("run", status.step)
            if time.monotonic() > deadline:
                raise RunError(f"run {run.name} has not given a sign of life for {longest_s:g} s")
            time.sleep(_POLL_S)

    def _read(
        self,
        run: RunFolder,
        repetition: int,
        delay_ms: float,
        round_trip: float,
        before_s: tuple[float, ...],
        after_s: tuple[float, ...],
    ) -> Measurement:
        """Read what a run has written."""
        options, steps = self._options, read_steps(run)
        if len(steps) != options.total_steps:
            raise RunError(f"{run.tensorboard}: expected {options.total_steps} steps, found {len(steps)}")
        timed = steps[options.warmup :]
        (metrics,) = run.read_metrics()
        up, down = evaluation_bytes(self._config, self._stores)
        return Measurement(
            repetition=repetition,
            delay_ms=delay_ms,
            round_trip_s=round_trip,
            batch_size=self._config.training.batch_size,
            # When the first step began is not written down; it is one of the warm-up.
            step_s=tuple(after.end - before.end for before, after in pairwise(steps))[options.warmup - 1 :],
            before_s=before_s,
            after_s=after_s,
            parts_s={part: statistics.median(step.parts_s[part] for step in timed) for part in PARTS},
            bytes_up=metrics["bytes_up"] - up,
            bytes_down=metrics["bytes_down"] - down,
            steps=options.total_steps,
        )

    def _show(self, who: str, done: int) -> None:
        self._progress.step(who, done, self._options.total_steps)


BENCHMARK = SeparateHosts()

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
