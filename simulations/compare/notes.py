"""Writes notes on how to read the tables, and on where the comparison is uneven."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations.compare.choosing import chosen_in_words
from simulations.compare.differences import conclusion, differences, references
from simulations.compare.results import AVERAGING, JUDGED, MERGED, PATCHES, WHOLE
from simulations.reports import Values

if TYPE_CHECKING:
    from simulations.compare.report import Report

_ENGINES = {
    "flwr": "through `flwr run` in Flower's simulation",
    "in-process": "by the same engine in one process, without Flower and Ray, frames encoded and counted as on a wire",
    "one-graph": "as one graph in one process, without Flower, whose weights are those of the federated run; "
    "it sends nothing",
}
_HOSTING = (
    "; a simulated node's hosts several Uppers where a grid has more than this machine simulates nodes (as many as it "
    "has cores, at least four)"
)
_STRATEGIES_OWN = {"proximal-mu": "FedProx' mu", "server-lr": "FedAdam's server rate"}
_TARGETS = {
    MERGED: "the whole image augmented by patches", WHOLE: "the whole image", PATCHES: "all of patch-split learning",
    AVERAGING: "all of federated averaging",
}  # fmt: skip


def notes(report: Report) -> str:
    """Explain the tables, and where the comparison is uneven."""
    settings = report.settings
    kinds = {summary.method.kind for summary in report.summaries}
    parts = [
        *filter(None, [conclusion(report)]),
        f"Accuracy: mean over the seeds (lowest to highest) on the same {JUDGED[settings.judge]} after the last step; "
        "the seed also draws which images are used where not all are. Same backbone, images, batch size, schedule and "
        "number of passes for all methods. Times: median (lowest to highest); training leaves evaluations and the "
        "start of processes out. Parties share this machine's cores.",
    ]
    if PATCHES in kinds:
        parts.append(_of_patches(report))
    if settings.judge == "valid" and PATCHES in kinds:
        parts.append(f"Chosen on these images, grid by grid: {chosen_in_words(report)}")
    if any(differences(report, name) for name in references(report)):
        parts.append(
            "Differences: a method's accuracy minus that of the reference with the same seed, in points; mean over the "
            "seeds, and its 95 % interval by Student's t."
        )
    if any(trial.absent for trial in report.measurements):
        parts.append(
            "Without some Uppers: zeros stand for what they would have sent to the trained Lower model; mean (lowest "
            "to highest) over choices of Uppers and seeds."
        )
    if MERGED in kinds:
        parts.append(_of_merged(report))
    if AVERAGING in kinds:
        parts.append(_of_averaging(report))
    parts.append(
        "FLOP: forward and backward pass, counted by torch.utils.flop_counter, on the node that has most to do. Peak: "
        f"resident memory of a process, torch included{_HOSTING * (settings.engine == 'flwr')}. The target is "
        f"{settings.target:.1%}: {_target(report)}. {report.load}"
    )
    return " ".join([*parts, *_elsewhere(report)])


def _of_patches(report: Report) -> str:
    config, engine = report.settings.config, report.settings.engine
    sends = engine != "one-graph"
    return (
        f"Patch-split learning ran {_ENGINES[engine]}. "
        + "Its bytes include the evaluations, which send smashed data of all test images. " * sends
        + f"Smashed data go as {config['wire-activations']}, their gradients as {config['wire-gradients']}."
    )


def _of_merged(report: Report) -> str:
    return (
        "The whole image augmented by patches is the network in one process on images put together from patches "
        "that were shifted one by one, as separate stores must"
        f" ({_merged_grid(report)}); the whole image without that is the upper line."
    )


def _of_averaging(report: Report) -> str:
    return (
        "Federated averaging is Flower's own strategy through `flwr run`. Uneven: its clients start every round "
        "with fresh momentum and make fewer, equally large steps in a pass (each over its own part alone); the "
        "server evaluates on the test images itself, so evaluation costs no bytes; learning rate and batch size "
        f"were not tuned for it{_server_side(report)}. Its first round includes the start of its clients."
    )


def _merged_grid(report: Report) -> str:
    config = next(s.method.config for s in report.summaries if s.method.kind == MERGED)
    grids = {(c["patch-size"], c["stride"]) for s in report.summaries if "patch-size" in (c := s.method.config)}
    stride = f", stride {config['stride']}" if config["stride"] != config["patch-size"] else ""
    return f"of {config['patch-size']}{stride}{', also beside the other grids' * (len(grids) > 1)}"


def _server_side(report: Report) -> str:
    """Return the settings particular to FedProx and FedAdam, in brackets."""
    owned = {key: s.method.own[key] for s in report.summaries for key in _STRATEGIES_OWN if key in s.method.own}
    said = ", ".join(f"{name} {owned[key]:g}" for key, name in _STRATEGIES_OWN.items() if key in owned)
    return f" ({said})" if said else ""


def _target(report: Report) -> str:
    if "target" in report.settings.options:
        return "as asked for"
    kinds = [summary.method.kind for summary in report.summaries]
    of = next(name for kind, name in _TARGETS.items() if kind in kinds)
    return f"nine tenths of what {of} came to"


def _elsewhere(report: Report) -> list[str]:
    """Describe trials that ran on another machine or with other versions than the last call."""
    unknown = sum(not trial.machine for trial in report.measurements)
    found = [
        f"{unknown} of {len(report.measurements)} trials do not say when and where they ran; machine, versions and "
        "date are those of the last call, which may have taken them over from earlier ones."
    ] * (unknown > 0)
    others = {_place(t.machine, t.versions) for t in report.measurements if t.machine}
    others -= {_place(report.machine, report.versions)}
    return found + [f"Some trials ran elsewhere: {'; '.join(sorted(others))}."] * bool(others)


def _place(machine: Values, versions: dict[str, str]) -> str:
    return ", ".join(
        [f"{machine['cpu']}, {machine['cores']} cores, {machine.get('gpu') or 'no GPU'}"]
        + [f"{name} {version}" for name, version in versions.items()]
    )
