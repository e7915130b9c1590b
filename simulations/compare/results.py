"""The records: one per trial, and a summary per method."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from simulations.memory import highest
from simulations.reports import Spread, Values

WHOLE, MERGED, PATCHES, AVERAGING = "whole", "merged", "patch-split", "averaging"
# Which images accuracy is measured on, by what `--judge` calls them.
JUDGED = {"test": "test images", "valid": "images held back to validate on"}
ENGINES = ("flwr", "in-process", "one-graph")
# Where the recipe is not that of a run's defaults (docs/accuracy-studies.md).
DEFAULTS: dict[str, object] = {"dataset": "digits", "batch-size": 128, "lr": 0.05, "progress-every-s": 0.0}


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train."""

    #: "whole" (whole images in one process), "merged" (the same, augmented patch by patch), "patch-split" or
    #: "averaging".
    kind: str
    name: str  #: Name for people, unique among the methods.
    group: str  #: Methods of one group differ in the Adaptation Net alone.
    config: Values = {}  #: Settings of the run by their kebab-case keys, without those that all methods share.
    own: Values = {}  #: Settings that federated averaging alone has.


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A trial's state at one of its evaluations."""

    epoch: float  #: Passes over the training images so far.
    #: Accuracy and loss on the images that `Settings.judge` names.
    accuracy: float
    test_loss: float
    train_s: float  #: Seconds of training so far, without evaluations.
    #: Bytes from and to all nodes so far, evaluations included; 0 if nothing was sent.
    bytes_up: int = 0
    bytes_down: int = 0


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and range over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """Summarise one or more values."""
        known = list(values)
        return cls(mean=statistics.fmean(known), low=min(known), high=max(known))


class Absence(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of a trained network without some of its Uppers (`psl_flower.inference.absence`)."""

    absent: int
    accuracy: Mean
    tried: int
    possible: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One method, trained once."""

    method: str
    seed: int  #: Seed of everything random.
    engine: str  #: "flwr", "in-process", "one-graph", or "one process" for the whole image.
    points: tuple[Point, ...]  #: The evaluations, in order.
    confusion: tuple[tuple[int, ...], ...]  #: Images by class (row) and answer (column), at the end.
    #: Seconds from command to end, start of all processes included; of the last attempt if it was interrupted.
    wall_s: float
    #: Bytes from and to every node, by its number; empty if nothing was sent, or nothing was counted.
    up: dict[str, int] = {}
    down: dict[str, int] = {}
    #: Highest resident memory of a process, by role: "node", "server" or "one process"; memory of a GPU: "GPU".
    peak_bytes: dict[str, int] = {}
    absent: tuple[Absence, ...] = ()  #: Accuracy without 0, 1, 2, ... Uppers, if it was measured.
    #: Time, machine and versions of the training; empty if an older program did not record them.
    date: str = ""
    machine: dict[str, str | int | float] = {}
    versions: dict[str, str] = {}

    @property
    def accuracy(self) -> float:
        """Accuracy at the end."""
        return self.points[-1].accuracy

    def epochs_to(self, target: float) -> float | None:
        """Return the passes after which an evaluation first found this accuracy; None if none did."""
        return next((point.epoch for point in self.points if point.accuracy >= target), None)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Machine-independent cost of a method: floating point operations of forward and backward pass, and weights."""

    #: Operations for one training image on the busiest node, and on the server; one process counts as a node.
    node_flops: float
    server_flops: float
    node_images: int  #: Images that this node sees in an epoch, or parts of them.
    #: Parameters on that node, and in all, those of the Adaptation Net not counted.
    node_weights: int
    weights: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a method's trials."""

    method: Method
    trials: int
    accuracy: Mean  #: Accuracy at the end.
    reached: int  #: Trials that reached the target.
    epochs_to_target: Mean | None  #: Over those; None if there are none.
    #: Seconds of a trial.
    train_s: Spread
    wall_s: Spread
    #: "node": most bytes from or to one node; "all": from or to all of them; empty if nothing was counted.
    up: dict[str, int]
    down: dict[str, int]
    peak_bytes: dict[str, int]  #: Highest memory of all trials, by role.
    cost: Cost


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared."""

    config: Values  #: Settings that all methods share, by their kebab-case keys.
    options: dict[str, str]  #: The command's options, by their names.
    engine: str  #: Engine of patch-split learning.
    epochs: int  #: Passes over the training images, the same for all methods.
    #: The same for all methods; the images to train on include those held back to validate on.
    train_images: int
    test_images: int
    steps_per_epoch: int  #: Steps of every method except federated averaging, whose clients count their own.
    classes: tuple[str, ...]
    target: float  #: Accuracy of which the epochs are counted.
    judge: str = "test"  #: Images evaluated: "test", or "valid" for those held back to validate on.


def summarise(
    methods: Sequence[Method], costs: dict[str, Cost], trials: Sequence[Trial], target: float
) -> tuple[Summary, ...]:
    """Summarise the trials by method; methods without a trial are left out."""
    by_method = {method.name: [trial for trial in trials if trial.method == method.name] for method in methods}
    return tuple(
        _summary(method, costs[method.name], by_method[method.name], target)
        for method in methods
        if by_method[method.name]
    )


def target_accuracy(trials: Sequence[Trial], methods: Sequence[Method], asked: float | None) -> float:
    """Return the accuracy asked for, or nine tenths of the mean of a kind: of the first of these that was trained.

    The whole image augmented by patches, the whole image, patch-split learning, federated averaging.
    """
    if asked is not None:
        return asked
    for kind in (MERGED, WHOLE, PATCHES, AVERAGING):
        names = {method.name for method in methods if method.kind == kind}
        found = [trial.accuracy for trial in trials if trial.method in names]
        if found:
            return round(0.9 * statistics.fmean(found), 3)
    return 0.0


def _summary(method: Method, cost: Cost, trials: Sequence[Trial], target: float) -> Summary:
    epochs = [found for trial in trials if (found := trial.epochs_to(target)) is not None]
    return Summary(
        method=method,
        trials=len(trials),
        accuracy=Mean.of(trial.accuracy for trial in trials),
        reached=len(epochs),
        epochs_to_target=Mean.of(epochs) if epochs else None,
        train_s=Spread.of(trial.points[-1].train_s for trial in trials),
        wall_s=Spread.of(trial.wall_s for trial in trials),
        up=_traffic([trial.up for trial in trials]),
        down=_traffic([trial.down for trial in trials]),
        peak_bytes=highest(peak for trial in trials for peak in trial.peak_bytes.items()),
        cost=cost,
    )


def _traffic(by_node: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the bytes of a trial: of the node with most, and of all nodes; the highest over the trials."""
    if not any(by_node):
        return {}
    return {
        "node": max(max(nodes.values()) for nodes in by_node if nodes),
        "all": max(sum(nodes.values()) for nodes in by_node),
    }
