"""Which methods a study compares: from the command's options to the settings of every run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import msgspec

from psl_flower.baselines.fedavg import PARTITIONS, STRATEGIES
from psl_flower.config import RunConfig, parse_size, size_text
from psl_flower.errors import ConfigError
from psl_flower.kinds import parse_settings
from psl_flower.patches import PatchGrid
from simulations.compare.results import AVERAGING, MERGED, PATCHES, WHOLE, Method
from simulations.reports import Values

_NAMES = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedadam": "FedAdam"}
CHOICES = ("whole", "patch-split", *STRATEGIES)
# Settings that a variant may change: those that leave images, test images and passes alike.
VARIED = frozenset(
    {
        "flip", "shift", "cutout", "mixup", "patch-dropout", "label-smoothing", "lr", "momentum", "weight-decay",
        "schedule", "uppers", "assignment", "cut", "upper-init", "average-every", "protection",
        "wire-activations", "wire-gradients", "autocast",
    }
)  # fmt: skip

Size = tuple[int, int]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the command's options ask for.

    Attributes
    ----------
    methods : tuple of str
        Of `CHOICES`.
    grids : tuple of (patch size, stride)
        In pixels; empty for 2x2 patches, and the same with patches that overlap by half.
    alphas : tuple of float
        Weights of the Adaptation Net's loss; 0: without.
    variants : tuple of str
        Patch-split learning is trained as it is and with each of these, as `read_variant` takes them.
    partitions : tuple of str
        Of `PARTITIONS`.
    dirichlet_alpha : float
        See `clients.partitions.divide`.
    clients : int
        Of federated averaging; 0: as many as the first grid has patches.
    local_epochs : int
        Passes of a client in a round.
    proximal_mu, server_lr : float
        See `psl_flower.baselines.fedavg.FedAvgConfig`.
    """

    methods: tuple[str, ...]
    grids: tuple[tuple[Size, Size], ...]
    alphas: tuple[float, ...]
    variants: tuple[str, ...]
    partitions: tuple[str, ...]
    dirichlet_alpha: float
    clients: int
    local_epochs: int
    proximal_mu: float = 0.01
    server_lr: float = 0.01


def read_grid(text: str) -> tuple[Size, Size]:
    """Return (patch size, stride) of "16x16" or "16x16/8x8"; raises ConfigError for anything else."""
    patch, slash, stride = text.partition("/")
    size = parse_size("grids", patch)
    if size == (0, 0) or (slash and not stride):
        raise ConfigError(f'grids: expected patch sizes such as "16x16" or "16x16/8x8" (patch/stride), got {text!r}')
    return size, parse_size("grids", stride) if stride else size


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


def usual_grids(image_size: Size) -> tuple[tuple[Size, Size], ...]:
    """Return 2x2 patches, and patches of that size that overlap by half where that fits."""
    half = (-(-image_size[0] // 2), -(-image_size[1] // 2))
    quarter = (half[0] // 2, half[1] // 2)
    overlapping = [(half, quarter)] if all(size % 4 == 0 for size in image_size) else []
    return ((half, half), *overlapping)


def plan(config: RunConfig, choice: Choice, image_size: Size) -> list[Method]:
    """Return the methods, each with the settings that set it apart.

    Raises
    ------
    ConfigError
        If a grid does not fit the images.
    """
    grids = choice.grids or usual_grids(image_size)
    cut = {
        grid: PatchGrid(image_size=image_size, patch_size=grid[0], stride=grid[1], fit=config.patches.fit)
        for grid in grids
    }
    first = grids[0]
    found: list[Method] = []
    for name in choice.methods:
        if name == "whole":
            found.append(Method(kind=WHOLE, name="whole image", group="whole image"))
            found.append(
                Method(
                    kind=MERGED,
                    name="whole image, augmented by patches",
                    group="whole image, augmented by patches",
                    config={**_grid_settings(first), "alpha": 0.0},
                )
            )
        elif name == "patch-split":
            for grid, variant in product(grids, ("", *choice.variants)):
                label = _label(grid, cut[grid]) + (f", {variant.replace('+', ' ')}" if variant else "")
                found += [
                    Method(
                        kind=PATCHES,
                        name=label + (f" + Adaptation Net{_strength(alpha, choice)}" if alpha else ""),
                        group=label,
                        config={**_grid_settings(grid), "alpha": alpha, **read_variant(variant)},
                    )
                    for alpha in choice.alphas
                ]
        else:
            clients = choice.clients or cut[first].num_patches
            found += [_averaging(name, partition, clients, choice) for partition in choice.partitions]
    return found


def _averaging(name: str, partition: str, clients: int, choice: Choice) -> Method:
    parts = "IID" if partition == PARTITIONS[0] else f"Dirichlet({choice.dirichlet_alpha:g})"
    label = f"{_NAMES[name]}, {clients} clients, {parts}"
    own: dict[str, str | int | float | bool] = {
        "strategy": name, "clients": clients, "partition": partition, "dirichlet-alpha": choice.dirichlet_alpha,
        "local-epochs": choice.local_epochs,
    }  # fmt: skip
    if name == "fedprox":
        own["proximal-mu"] = choice.proximal_mu
    if name == "fedadam":
        own["server-lr"] = choice.server_lr
    return Method(kind=AVERAGING, name=label, group=label, own=own)


def _grid_settings(grid: tuple[Size, Size]) -> dict[str, str | int | float | bool]:
    return {"patch-size": size_text(grid[0]), "stride": size_text(grid[1])}


def _label(grid: tuple[Size, Size], cut: PatchGrid) -> str:
    overlap = f", stride {size_text(grid[1])}" if grid[1] != grid[0] else ""
    return f"{cut.rows}x{cut.cols} patches of {size_text(grid[0])}{overlap}"


def _strength(alpha: float, choice: Choice) -> str:
    """Return the alpha where several are compared."""
    return f" (alpha {alpha:g})" if len([a for a in choice.alphas if a]) > 1 else ""


def grid_texts(grids: Sequence[tuple[Size, Size]]) -> str:
    """Return grids as `read_grid` takes them, with commas between."""
    return ",".join(size_text(p) + (f"/{size_text(s)}" if s != p else "") for p, s in grids)
