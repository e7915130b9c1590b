"""Trials through `flwr run`: patch-split learning with this app, federated averaging with the one in fedavg/."""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.partitions import divide
from psl_flower.baselines.fedavg import FedAvgConfig
from psl_flower.config import RunConfig
from psl_flower.kinds import Kind, Resume, Train
from psl_flower.launch.running import Watch, app_folder, local_paths, prepare, start
from psl_flower.launch.sizing import simulation
from psl_flower.launch.superlink import LocalSuperLink
from psl_flower.runs.folder import PREDICTIONS_FILE, RunFolder, Status
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.machine import count_gpus, usable_cores
from simulations.child import Tell
from simulations.compare.results import Point
from simulations.compare.worker import Outcome
from simulations.memory import LOWER, UPPER, MemoryWatch, highest
from simulations.reports import Values
from simulations.watching import looks

FEDAVG_APP = Path(__file__).parent / "fedavg"
_POLL_S = 0.5


def patch_split(config: RunConfig, steps_per_epoch: int, show: Tell) -> Outcome:
    """Train with patches, from where an earlier attempt was interrupted; `show` is called with the steps done.

    Raises
    ------
    RunError
        If the run fails, with its own last words.
    """
    run = RunFolder(config.workspace_path() / "runs" / config.run.run_name)
    kind: Kind = Train(config=config)
    if run.has_checkpoint:
        kind = Resume(config=config.replace(run_name=""), resume=run.name)
    else:
        shutil.rmtree(run.path, ignore_errors=True)
    with LocalSuperLink() as superlink:
        num_uppers, work = prepare(kind)
        superlink.wait()
        watch = Watch(superlink, run, kind.how_to_continue)
        start(superlink, app_folder(), kind.to_mapping(), kind, work, num_uppers)
        memory = _follow(watch, superlink, run, lambda status: show(status.step))
    rows = run.read_metrics()
    points = _points(rows, [row["step"] / steps_per_epoch for row in rows])
    return _outcome(run, points, rows, "upper", memory)


def averaging(config: RunConfig, own: Values, show: Tell) -> Outcome:
    """Train with federated averaging, from the beginning; `show` is called with the rounds done.

    `config` has what all methods share, with rounds, name and workspace; `own` the settings of averaging alone, by
    their kebab-case keys. Raises RunError as `patch_split`.
    """
    run = RunFolder(config.workspace_path() / "runs" / config.run.run_name)
    shutil.rmtree(run.path, ignore_errors=True)
    with LocalSuperLink() as superlink:
        superlink.wait()
        watch = Watch(superlink, run)
        superlink.run(FEDAVG_APP, _settings(config, own), federation(own))
        memory = _follow(watch, superlink, run, lambda status: show(status.round))
    rows = run.read_metrics()
    return _outcome(run, _points(rows, [float(row["epochs"]) for row in rows]), rows, "client", memory)


def parts(config: RunConfig, own: Values, whole: StoreSet) -> list[NDArray[np.int64]]:
    """Return the training images, ascending, of every client of federated averaging.

    Raises
    ------
    ConfigError
        If a setting is refused, or the images are too few for the number of clients, or their differences.
    """
    fed = FedAvgConfig.from_mapping(_settings(config, own))
    samples_N = whole.description.samples_of("train")
    return divide(
        samples_N, whole.labels[samples_N],
        num_clients=fed.clients, kind=fed.partition, alpha=fed.dirichlet_alpha, seed=fed.config.training.seed,
    )  # fmt: skip


def _settings(config: RunConfig, own: Values) -> Values:
    """Return the settings of a run of federated averaging: its own, and of the shared ones those that its app has."""
    settings = config.to_mapping() | local_paths(config.to_mapping()) | own
    known = tomllib.loads((FEDAVG_APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["config"]
    return {key: settings[key] for key in known if key in settings}


def federation(own: Values) -> dict[str, int | float]:
    """Return the simulation's settings: a client waits for no other, so as many run at once as there are cores."""
    clients, cores = int(own["clients"]), usable_cores()
    config = simulation(clients, cores, count_gpus(), min(clients, cores))
    return config | {"num-supernodes": clients}


def _follow(watch: Watch, superlink: LocalSuperLink, run: RunFolder, show: Callable[[Status], None]) -> MemoryWatch:
    """Look after a run until it ends; return what memory was seen. Raises RunError unless it has completed."""
    memory = MemoryWatch()
    for status in looks(watch, superlink, run, f"run {run.name}"):
        if status is not None and status.state == "training":
            show(status)
        memory.look_now_and_then(superlink.processes)
        time.sleep(_POLL_S)
    return memory


def _points(rows: list[dict[str, Any]], epochs: list[float]) -> tuple[Point, ...]:
    train_s = np.cumsum([row["train_s"] for row in rows])
    up, down = (np.cumsum([row[key] for row in rows]) for key in ("bytes_up", "bytes_down"))
    return tuple(
        Point(
            epoch=epochs[i],
            accuracy=row["accuracy"],
            test_loss=row["test_loss"],
            train_s=float(train_s[i]),
            bytes_up=int(up[i]),
            bytes_down=int(down[i]),
        )
        for i, row in enumerate(rows)
        if row["accuracy"] is not None
    )


def _outcome(
    run: RunFolder, points: tuple[Point, ...], rows: list[dict[str, Any]], node: str, memory: MemoryWatch
) -> Outcome:
    with np.load(run.path / PREDICTIONS_FILE) as found:
        label, predicted = (tuple(found[name].tolist()) for name in ("label", "predicted"))
    roles = {UPPER: "node", LOWER: "server"}
    peaks = ((roles[process.role], process.peak_bytes) for process in memory.processes() if process.role in roles)
    return Outcome(
        points=points,
        label=label,
        predicted=predicted,
        up=total_by_node(rows, "up", node),
        down=total_by_node(rows, "down", node),
        peak_bytes=highest(peaks),
    )


def total_by_node(rows: list[dict[str, Any]], way: str, node: str) -> dict[str, int]:
    """Return the bytes of every node, "upper" or "client", on the way "up" or "down", from rounds of metrics.jsonl.

    In each round the nodes' bytes are those so far, since the process began.
    """
    total: dict[str, int] = {}
    before: dict[str, int] = {}
    for row in rows:
        so_far = row[f"bytes_{way}_by_{node}"]
        # A round's own bytes are all that there were only where the run began, or was continued.
        if row[f"bytes_{way}"] == sum(so_far.values()) + row.get(f"bytes_{way}_adaptation", 0):
            before = {}
        for name, count in so_far.items():
            total[name] = total.get(name, 0) + count - before.get(name, 0)
        before = so_far
    return total
