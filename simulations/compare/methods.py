"""Turns the command's options into the methods that a study compares, with the settings of every run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from psl_flower.baselines.fedavg import PARTITIONS, STRATEGIES
from psl_flower.config import RunConfig, Size, fields, parse_size, size_text
from psl_flower.config.fields import setting
from psl_flower.errors import ConfigError, RunError
from psl_flower.kinds import parse_settings
from psl_flower.patches import PatchGrid
from psl_flower.patches.cutting import half_of
from simulations import reports
from simulations.compare.choosing import best_by_grid
from simulations.compare.report import Report
from simulations.compare.results import AVERAGING, ENGINES, JUDGED, MERGED, PATCHES, WHOLE, Method
from simulations.options import number, one_of, seed, several, texts
from simulations.reports import Values

_NAMES = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedadam": "FedAdam"}
CHOICES = ("whole", "patch-split", *STRATEGIES)
# Settings that a variant may change: those that keep images, test images and passes the same.
VARIED = frozenset(
    {
        "flip", "shift", "cutout", "mixup", "patch-dropout", "label-smoothing", "lr", "momentum", "weight-decay",
        "schedule", "uppers", "assignment", "cut", "upper-init", "average-every", "protection",
        "code-size", "code-levels", "code-pool", "wire-activations", "wire-gradients", "autocast", "alpha",
        "upper-lr-scale", "margin", "context", "padding", "code-noise", "gradient-feedback",
    }
)  # fmt: skip


class Grid(NamedTuple):
    """Sizes of patch and stride in pixels."""

    patch: Size
    stride: Size

    def __str__(self) -> str:
        return size_text(self.patch) + (f"/{size_text(self.stride)}" if self.stride != self.patch else "")


def read_grid(text: str) -> Grid:
    """Return the grid of "16x16" or "16x16/8x8"; raises ConfigError for anything else."""
    patch, slash, stride = text.partition("/")
    size = parse_size("grids", patch)
    if size == (0, 0) or (slash and not stride):
        raise ConfigError(f'grids: expected patch sizes such as "16x16" or "16x16/8x8" (patch/stride), got {text!r}')
    return Grid(size, parse_size("grids", stride) if stride else size)


def read_variant(text: str) -> Values:
    """Return the settings of a variant such as "flip=true+shift=2"; of an empty one none.

    Raises
    ------
    ConfigError
        If it is not KEY=VALUE with + between, a setting is wrong, or is not one that a variant may change.
    """
    settings = parse_settings(text.split("+") if text else [])
    refused = sorted(settings.keys() - VARIED)
    if refused:
        raise ConfigError(f"variants: {refused[0]!r} is none of {', '.join(sorted(VARIED))}")
    told = RunConfig.from_mapping(settings).to_mapping()
    return {key: told[key] for key in settings}


def _checked_variant(text: str) -> str:
    read_variant(text)
    return text


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """The methods to compare, and how. Patch-split learning is trained unchanged, and with each of the variants."""

    methods: tuple[str, ...] = several(("whole", "patch-split", "fedavg"), f"of {','.join(CHOICES)}", one_of(CHOICES))
    grids: tuple[Grid, ...] = several(
        (),
        "patch/stride in pixels, such as 16x16,16x16/8x8 [2x2 patches; the same overlapping by half]",
        read_grid,
    )
    alphas: tuple[float, ...] = several((0.0, 1.0), "weights of the Adaptation Net's loss, 0 without it", number)
    variants: tuple[str, ...] = several(
        (),
        "patch-split learning also with these settings, such as flip=true,cutout=8+mixup=0.2 [none]",
        _checked_variant,
    )
    whole: str = setting("", "settings of the whole image alone, such as shift=4: augmented as a whole it bears more")
    partitions: tuple[str, ...] = several(
        PARTITIONS, "how the images are divided among the clients", one_of(PARTITIONS)
    )
    dirichlet_alpha: float = setting(0.5, "the smaller, the more clients' classes differ", least=0)
    clients: int = setting(0, "clients of federated averaging; 0: one for each patch of the first grid")
    local_epochs: int = setting(1, "passes of a client in a round of averaging", least=1)
    proximal_mu: float = setting(0.01, "weight of FedProx' proximal term", least=0)
    server_lr: float = setting(0.01, "FedAdam's learning rate on the server", least=0)
    seeds: tuple[int, ...] = several((0,), "seeds; every method is trained with each", seed)
    epochs: int = setting(5, "passes over the training images", least=1)
    evaluations: int = setting(
        1, "evaluations in an epoch, at most: the largest divisor of its steps up to this", least=1
    )
    max_train: int = setting(0, "training images, drawn by the seed; 0: all")
    max_test: int = setting(0, "test images, likewise")
    engine: str = setting(
        "flwr",
        "patch-split learning: through flwr run, or without Flower: by the same engine in one process, or as one "
        "graph, which is fastest on a GPU",
        choices=ENGINES,
    )
    judge: str = setting(
        "test",
        "images that accuracy is measured on; valid: those held back by valid-fraction, to choose between settings "
        "without reading a test image (with --engine one-graph)",
        choices=tuple(JUDGED),
    )
    recipe: str = setting(
        "",
        "report of a study with --judge valid: patch-split learning also with the settings that were best there, grid "
        "by grid",
    )
    absent: bool = setting(False, "with --engine one-graph: also accuracy without some Uppers")
    target: float | None = setting(
        None,
        "accuracy, 0 to 1, of which the epochs are counted [nine tenths of what the whole image augmented by patches "
        "comes to, or without it the mean of all that is trained]",
        least=0,
        most=1,
    )

    def _check(self) -> None:
        if self.epochs % self.local_epochs:
            raise ConfigError(
                f"--local-epochs: {self.epochs} epochs are no whole number of rounds of {self.local_epochs}"
            )
        read_variant(self.whole)
        if self.judge == "valid" and (self.engine != "one-graph" or set(self.methods) - {"whole", "patch-split"}):
            raise ConfigError("--judge valid goes with --engine one-graph and --methods of whole,patch-split")
        if self.absent and self.engine != "one-graph":
            raise ConfigError("--absent goes with --engine one-graph")

    def told(self) -> dict[str, str]:
        """Return the options that differ from their defaults, as typed; the epochs always."""
        usual = texts(Options())
        return {name: text for name, text in texts(self).items() if text != usual.get(name) or name == "epochs"}


def usual_grids(image_size: Size) -> tuple[Grid, ...]:
    """Return 2x2 patches, and patches of that size that overlap by half where that fits."""
    half = half_of(image_size)
    quarter = (half[0] // 2, half[1] // 2)
    overlapping = [Grid(half, quarter)] if all(size % 4 == 0 for size in image_size) else []
    return (Grid(half, half), *overlapping)


def plan(config: RunConfig, options: Options, image_size: Size) -> list[Method]:
    """Return the methods, each with the settings that set it apart.

    Raises
    ------
    ConfigError
        If a grid does not fit the images.
    """
    grids = options.grids or usual_grids(image_size)
    recipes = chosen_recipes(Path(options.recipe)) if options.recipe else {}
    cut = {
        grid: PatchGrid(image_size=image_size, patch_size=grid.patch, stride=grid.stride, fit=config.patches.fit)
        for grid in grids
    }
    first = grids[0]
    found: list[Method] = []
    for kind in options.methods:
        if kind == "whole":
            name = "whole image" + _told(options.whole)
            found.append(Method(kind=WHOLE, name=name, group=name, config=read_variant(options.whole)))
            found.append(
                Method(
                    kind=MERGED,
                    name="whole image, augmented by patches",
                    group="whole image, augmented by patches",
                    config={**_grid_settings(first), "alpha": 0.0},
                )
            )
        elif kind == "patch-split":
            for grid, variant in product(grids, ("", *options.variants)):
                label = _label(grid, cut[grid]) + _told(variant)
                found += [
                    Method(
                        kind=PATCHES,
                        name=label + (f" + Adaptation Net{_strength(alpha, options)}" if alpha else ""),
                        group=label,
                        config={**_grid_settings(grid), "alpha": alpha, **read_variant(variant)},
                    )
                    for alpha in options.alphas
                ]
            if recipes:
                found += [_with_recipe(grid, _label(grid, cut[grid]), recipes, options.recipe) for grid in grids]
        else:
            clients = options.clients or cut[first].num_patches
            found += [_averaging(kind, partition, clients, options) for partition in options.partitions]
    return found


def chosen_recipes(path: Path) -> dict[str, Values]:
    """Return the settings chosen by a study's report, for each grid as `--grids` names it.

    Raises
    ------
    RunError
        If the file is no report of a comparison, or `best_by_grid` raises it.
    """
    report = reports.load(path, Report)
    if report is None:
        raise RunError(
            f"{path}: is the report of another benchmark; expected that of simulations.compare --judge valid"
        )
    try:
        return {grid: summary.method.config for grid, summary in best_by_grid(report).items()}
    except RunError as error:
        raise RunError(f"{path}: {error}") from error


def _with_recipe(grid: Grid, label: str, recipes: dict[str, Values], file: str) -> Method:
    if str(grid) not in recipes:
        raise ConfigError(
            f"--recipe {file}: nothing was chosen for {grid}, only for {', '.join(recipes)}; study that grid there, "
            "or leave it out of --grids"
        )
    name = f"{label}, chosen recipe"
    return Method(kind=PATCHES, name=name, group=name, config=recipes[str(grid)])


def _averaging(name: str, partition: str, clients: int, options: Options) -> Method:
    parts = "IID" if partition == PARTITIONS[0] else f"Dirichlet({options.dirichlet_alpha:g})"
    label = f"{_NAMES[name]}, {clients} clients, {parts}"
    own: Values = {
        "strategy": name, "clients": clients, "partition": partition, "dirichlet-alpha": options.dirichlet_alpha,
        "local-epochs": options.local_epochs,
    }  # fmt: skip
    if name == "fedprox":
        own["proximal-mu"] = options.proximal_mu
    if name == "fedadam":
        own["server-lr"] = options.server_lr
    return Method(kind=AVERAGING, name=label, group=label, own=own)


def _grid_settings(grid: Grid) -> Values:
    return {"patch-size": size_text(grid.patch), "stride": size_text(grid.stride)}


def _label(grid: Grid, cut: PatchGrid) -> str:
    overlap = f", stride {size_text(grid.stride)}" if grid.stride != grid.patch else ""
    return f"{cut.rows}x{cut.cols} patches of {size_text(grid.patch)}{overlap}"


def _told(variant: str) -> str:
    """Return a variant's settings for the end of a name; nothing if there are none."""
    return f", {variant.replace('+', ' ')}" if variant else ""


def _strength(alpha: float, options: Options) -> str:
    """Return the alpha where several are compared."""
    return f" (alpha {alpha:g})" if len([a for a in options.alphas if a]) > 1 else ""
