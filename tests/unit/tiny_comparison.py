"""A comparison as its trainings leave it, for the tests of what is made of one."""

import msgspec
import numpy as np

from psl_flower.config import RunConfig
from psl_flower.patches import PatchGrid
from simulations.compare import study
from simulations.compare.methods import Options, plan
from simulations.compare.report import Report
from simulations.compare.results import (
    DEFAULTS,
    Absence,
    Cost,
    Mean,
    Point,
    Settings,
    Trial,
    summarise,
    target_accuracy,
)  # fmt: skip

CHOICE = Options(methods=("whole", "patch-split", "fedprox"))
METHODS = plan(RunConfig(), CHOICE, (16, 16))
SHARED = {
    key: value for key, value in RunConfig.from_mapping(DEFAULTS).to_mapping().items() if key not in study.DECIDED
}


def trial(method, seed, *accuracies, sent=1_000_000):
    federated = method.kind in ("patch-split", "averaging")
    points = [
        Point(
            epoch=i + 1.0, accuracy=accuracy, test_loss=1.0, train_s=10.0 * (i + 1) * (seed + 1),
            bytes_up=sent * (i + 1) * federated, bytes_down=sent * (i + 1) * federated // 2,
        )
        for i, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    return Trial(
        method=method.name, seed=seed, engine="flwr", points=tuple(points), confusion=((3, 1), (0, 4)), wall_s=50.0,
        up={"0": 3 * sent, "1": sent} if federated else {}, down={"0": sent, "1": sent} if federated else {},
        peak_bytes={"node": 500_000_000, "server": 900_000_000} if federated else {"one process": 700_000_000},
    )  # fmt: skip


def report(**changes):
    trials = [trial(m, seed, 0.5, 0.7 + 0.01 * n + 0.1 * seed) for seed in (0, 1) for n, m in enumerate(METHODS)]
    cost = Cost(node_flops=2e9, server_flops=3e9, node_images=100, node_weights=150_000, weights=11_000_000)
    target = target_accuracy(trials, METHODS, None)
    values = {
        "config": SHARED, "options": {"epochs": "2", "seeds": "0,1"}, "engine": "flwr", "epochs": 2,
        "train_images": 100, "test_images": 16, "steps_per_epoch": 7, "classes": ("cat", "dog"), "target": target,
    }  # fmt: skip
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A <CPU>", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings=Settings(**(values | changes)),
        measurements=tuple(trials),
        summaries=summarise(METHODS, {m.name: cost for m in METHODS}, trials, target),
    )


def holdings():
    images = np.arange(5 * 3 * 16 * 16, dtype=np.uint32).reshape(5, 3, 16, 16).astype(np.uint8)
    grid = PatchGrid(image_size=(16, 16), patch_size=(8, 8), stride=(4, 4))
    return [
        study.Holding("3x3 patches", images, grid, tuple(range(9))),
        study.Holding("FedAvg, 9 clients, IID", images, clients=9),
    ]


def without_some():
    """Return the report of a study that measured accuracy without some Uppers."""
    full = report(engine="one-graph", options={"epochs": "2", "engine": "one-graph", "absent": ""})
    points = tuple(
        Absence(absent=n, accuracy=Mean(mean=0.7 - 0.2 * n, low=0.6 - 0.2 * n, high=0.7), tried=2, possible=2)
        for n in range(2)
    )
    names = {method.name for method in METHODS if method.kind == "patch-split"}
    measured = [msgspec.structs.replace(t, absent=points * (t.method in names)) for t in full.measurements]
    return msgspec.structs.replace(full, measurements=tuple(measured))
