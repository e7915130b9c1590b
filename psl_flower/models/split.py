"""The patch-split network: Upper models, Lower model and Adaptation Net, residual networks in two parts.

Shape suffixes: B batch, P patches, K patches of one Upper, N patches of a batch in one row (B*K), C channels, H and W
pixels of an image, h and w of a patch or of its feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from psl_flower.errors import ConfigError
from psl_flower.models.architectures import (
    UPPER_INITS,
    BackboneSize,
    check_context,
    last_stage,
    reduction,
    smashed_channels,
)
from psl_flower.models.cut import Corrected, MakePair, boundary, from_wire, to_wire, unprotected
from psl_flower.models.resnet import stages
from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign, positions_by_upper
from psl_flower.seeds import derive
from psl_flower.system.generator import seeded


class Upper(nn.Module):
    """The first part of the backbone, for the patches of one Upper node.

    Its state_dict has torchvision's names: conv1, bn1, and layer1 up to the cut.

    Parameters
    ----------
    backbone : {"resnet18", "resnet34", "resnet50"}
        Network whose first part this is.
    cut : {"stem", "layer1", "layer2", "layer3", "layer4", "pool"}
        Last stage on the Upper; "pool" is the mean of each channel after layer4, of the patch alone.
    stem : {"cifar", "imagenet"}
        3x3 convolution of stride 1 without pooling, or 7x7 of stride 2 with max-pooling.
    in_channels : int
        Channels of the images.
    protection : callable
        Makes the pair of modules at the cut (`psl_flower.models.cut`); by default smashed data cross it as they are.
    size : BackboneSize, optional
        Depth and width; torchvision's by default.
    padding : {"zeros", "replicate"}
        What convolutions read beyond the border of a patch: zeros, or its border repeated.
    context : int
        Pixels around a patch, on each side, that enter with it; the map at the cut is the patch's own. A multiple of
        `psl_flower.models.architectures.reduction`.

    Raises
    ------
    ConfigError
        If a choice is unknown, or the context is no such multiple.
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        cut: str = "layer1",
        stem: str = "cifar",
        in_channels: int = 3,
        protection: MakePair = unprotected,
        size: BackboneSize | None = None,
        padding: str = "zeros",
        context: int = 0,
    ) -> None:
        super().__init__()
        parts = stages(backbone, stem, in_channels, num_classes=1, size=size, padding=padding)
        names = list(parts)
        kept = names[: names.index(last_stage(cut)) + 1]
        for name in kept:
            # Modules that average a map, as a protection may, must see the patch's own map only.
            if context and name == "avgpool":
                self.crop = _Crop(context, cut, stem)
            self.add_module(name, parts[name]())
        if context and "avgpool" not in kept:
            self.crop = _Crop(context, cut, stem)
        pair = protection(smashed_channels(backbone, cut, size))
        self.protection = pair.upper
        self.smashed_channels = pair.wire_channels
        reset_parameters(self)

    def forward(self, patches_NChw: torch.Tensor, normal_Nd: torch.Tensor | None = None) -> torch.Tensor:
        """Return the smashed data (N, C', h', w') of patches with their context (N, C, h, w).

        Standard normal numbers (N, d) are for protections that add noise.
        """
        features = patches_NChw
        for stage in self.children():
            noisy = normal_Nd is not None and stage is self.protection
            features = stage(features, normal_Nd) if noisy else stage(features)
        return features


class _Crop(nn.Module):
    """The part of a map (N, C, h, w) that belongs to the patch without its context; no copy."""

    def __init__(self, context: int, cut: str, stem: str) -> None:
        super().__init__()
        check_context(context, cut, stem)
        self._edge = context // reduction(cut, stem)

    def forward(self, features_NChw: torch.Tensor) -> torch.Tensor:
        """Return the map without its edge."""
        edge, (h, w) = self._edge, features_NChw.shape[2:]
        return features_NChw[:, :, edge : h - edge, edge : w - edge]


class Lower(nn.Module):
    """The rest of the backbone: joins all smashed data, then the remaining stages and the classifier.

    Its state_dict has torchvision's names: the stages after the cut, and fc. Parameters are those of `Upper`, and the
    grid and number of classes.
    """

    def __init__(
        self,
        *,
        grid: PatchGrid,
        num_classes: int,
        backbone: str = "resnet18",
        cut: str = "layer1",
        stem: str = "cifar",
        protection: MakePair = unprotected,
        size: BackboneSize | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        pair = protection(smashed_channels(backbone, cut, size))
        self.protection = pair.lower
        self.joined = pair.joined
        parts = stages(backbone, stem, 3, num_classes, size)
        names = list(parts)
        # The Uppers pooled each patch separately; this pools again over the grid.
        first = min(names.index(last_stage(cut)) + 1, names.index("avgpool"))
        self._stage_names = names[first:]
        for name in self._stage_names:
            self.add_module(name, parts[name]())
        reset_parameters(self)

    def forward(self, smashed_BPChw: torch.Tensor, flipped: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (B, classes) from smashed data (B, P, C, h, w); for `flipped` see `PatchGrid.tile`."""
        P = smashed_BPChw.shape[1]
        features_NChw = channels_last(smashed_BPChw.flatten(0, 1))
        features: torch.Tensor = self.joined(self.grid.tile(_by_patch(self.protection(features_NChw), P), flipped))
        for name in self._stage_names:
            if name == "fc":
                features = features.flatten(1)
            features = self.get_submodule(name)(features)
        return features


class AdaptationNet(nn.Module):
    """The small head that gives each Upper an auxiliary loss; for training only.

    AdaptiveAvgPool(ceil(size/2)) - Flatten - Linear(.,512) - BatchNorm - ReLU - Linear(512,256) - BatchNorm - ReLU -
    Linear(256, classes), after Mabuchi and Ishikawa, WACV 2023. One net serves all Uppers.

    Parameters
    ----------
    patch_size : tuple[int, int]
        Height and width of a patch; behind a stem that reduces the map, those of the smashed map, since pooling to
        more than the map has would only repeat values.
    num_classes : int
        Classes.
    in_channels : int
        Channels of the smashed data.
    """

    def __init__(self, patch_size: tuple[int, int], num_classes: int, in_channels: int = 64) -> None:
        super().__init__()
        pooled = (-(-patch_size[0] // 2), -(-patch_size[1] // 2))
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(pooled),
            nn.Flatten(),
            nn.Linear(in_channels * pooled[0] * pooled[1], 512),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(inplace=True),
            nn.Linear(256, num_classes),
        )

    def forward(self, smashed_NChw: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes) of single patches' smashed data (N, C, h', w')."""
        logits: torch.Tensor = self.layers(smashed_NChw)
        return logits

    def for_all_patches(self, smashed_BPChw: torch.Tensor, absent: Collection[int] = ()) -> torch.Tensor:
        """Return logits (B, P, classes) of all patches in one pass, so that BatchNorm moves once per step.

        Positions that are absent are left out: zeros in their place would spoil BatchNorm's statistics.
        """
        if absent:
            smashed_BPChw = smashed_BPChw[:, [p for p in range(smashed_BPChw.shape[1]) if p not in absent]]
        B, P = smashed_BPChw.shape[:2]
        logits: torch.Tensor = self(channels_last(smashed_BPChw.flatten(0, 1)))
        return logits.reshape(B, P, -1)


class PatchSplitNet(nn.Module):
    """All Upper models and the Lower model in one module: the assembled network, and the oracle of exactness.

    Parameters
    ----------
    grid : PatchGrid
        How images are cut; its margin is the Uppers' context.
    num_uppers : int
        M, 1 to P.
    num_classes, in_channels, backbone, cut, stem, protection, size, padding
        As in `Upper` and `Lower`; the padding is that of the Uppers.
    assignment : {"scatter", "round-robin"} or sequence of int
        Which Upper takes which positions, where M < P: a method (`psl_flower.patches.assignment`), or each position's
        Upper.
    seed : int, optional
        Seed of the initial weights, as a federated run with that seed has them; None draws from torch's generator, for
        each Upper.
    upper_init : {"alike", "own"}
        With a seed: whether all Uppers begin with the same weights (`upper_seed`).

    Attributes
    ----------
    uppers : nn.ModuleList
        M Upper models.
    lower : Lower
        The Lower model.
    assignment : tuple[int, ...]
        assignment[p] is the Upper of position p.

    Raises
    ------
    ConfigError
        If a choice is unknown or num_uppers is out of range.
    """

    def __init__(
        self,
        *,
        grid: PatchGrid,
        num_uppers: int,
        num_classes: int,
        in_channels: int = 3,
        backbone: str = "resnet18",
        cut: str = "layer1",
        stem: str = "cifar",
        assignment: str | Sequence[int] = "scatter",
        protection: MakePair = unprotected,
        size: BackboneSize | None = None,
        padding: str = "zeros",
        seed: int | None = None,
        upper_init: str = "alike",
    ) -> None:
        super().__init__()
        self.grid = grid
        if isinstance(assignment, str):
            assignment = assign(grid, num_uppers, assignment)
        if len(assignment) != grid.num_patches or set(assignment) != set(range(num_uppers)):
            raise ConfigError(
                f"assignment: expected an Upper, 0 to {num_uppers - 1}, for each of {grid.num_patches} positions and "
                f"none without one, got {tuple(assignment)}"
            )
        self.assignment = tuple(assignment)
        self.uppers = nn.ModuleList(
            Upper(
                backbone=backbone, cut=cut, stem=stem, in_channels=in_channels, protection=protection, size=size,
                padding=padding, context=grid.margin,
            )
            for _ in range(num_uppers)
        )  # fmt: skip
        self.lower = Lower(
            grid=grid, num_classes=num_classes, backbone=backbone, cut=cut, stem=stem, protection=protection, size=size
        )
        if seed is not None:
            for m, upper in enumerate(self.uppers):
                reset_parameters(upper, upper_seed(seed, m, upper_init))
            reset_parameters(self.lower, lower_seed(seed))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        return self.join(self.smash(images_BCHW))

    def smash(
        self, images_BCHW: torch.Tensor, normal: Mapping[int, torch.Tensor] = MappingProxyType({})
    ) -> torch.Tensor:
        """Return the smashed data (B, P, C', h', w') of images (B, C, H, W); `normal` as in `smash_patches`."""
        return self.smash_patches(self.grid.split(images_BCHW), normal=normal)

    def smash_patches(
        self,
        patches_BPChw: torch.Tensor,
        activations: str = "float32",
        gradients: str = "float32",
        absent: Collection[int] = (),
        normal: Mapping[int, torch.Tensor] = MappingProxyType({}),
        corrected: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the smashed data (B, P, C', h', w') of patches (B, P, C, h, w) with context, through a wire's codecs.

        Uppers that are absent do not run; zeros stand for their smashed data. `normal` has standard normal numbers
        (B*K, d) for each Upper that adds noise. `corrected` is called with an Upper and the gradient (B, K, h', w', C')
        of its smashed data, and returns the one to send instead.
        """
        by_position: list[torch.Tensor | None] = [None] * self.grid.num_patches
        for m, (upper, positions) in enumerate(zip(self.uppers, positions_by_upper(self.assignment), strict=True)):
            if m in absent:
                continue
            patches_NChw = channels_last(patches_BPChw[:, list(positions)].flatten(0, 1))
            correct = None if corrected is None else _on_maps(partial(corrected, m), len(positions))
            crossed = boundary(upper(patches_NChw, normal.get(m)), activations, gradients, correct)
            smashed = _by_patch(crossed, len(positions))
            for k, p in enumerate(positions):
                by_position[p] = smashed[:, k]
        there = [smashed for smashed in by_position if smashed is not None]
        if len(there) < len(by_position):
            zeros = torch.zeros_like(there[0])
            there = [zeros if smashed is None else smashed for smashed in by_position]
        return torch.stack(there, dim=1)

    def join(self, smashed_BPChw: torch.Tensor, flipped: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (B, classes) of smashed data (B, P, C', h', w'); for `flipped` see `PatchGrid.tile`."""
        logits: torch.Tensor = self.lower(smashed_BPChw, flipped)
        return logits


def reset_parameters(module: nn.Module, seed: int | None = None) -> None:
    """Initialise all weights in place as torchvision does; with a seed, independently of torch's generator."""
    with nullcontext() if seed is None else seeded(seed):
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif callable(reset := getattr(part, "reset_parameters", None)):
                reset()


def upper_seed(seed: int, upper: int, init: str) -> int:
    """Seed of the initial weights of Upper m in a run.

    With `init` "alike" it is one for all: a channel then means the same all over the map that the Lower joins, whose
    convolutions reach across patches, and the network begins as the whole image's. With "own" each has another.

    Raises
    ------
    ConfigError
        If `init` is neither.
    """
    if init not in UPPER_INITS:
        raise ConfigError(f"upper-init: expected one of {', '.join(UPPER_INITS)}, got {init!r}")
    return derive(seed, "upper", upper if init == "own" else 0)


def lower_seed(seed: int) -> int:
    """Seed of the initial weights of the Lower model in a run."""
    return derive(seed, "lower")


def adaptation_seed(seed: int) -> int:
    """Seed of the initial weights of the Adaptation Net in a run."""
    return derive(seed, "adaptation")


def smashed_size(upper: nn.Module, patch_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (C', h', w') of one patch's smashed data for a patch (C, h, w); runs the Upper once, unchanged."""
    was_training = upper.training
    device = next((parameter.device for parameter in upper.parameters()), None)
    with torch.no_grad():
        shape = upper.eval()(torch.zeros(1, *patch_shape, device=device)).shape
    upper.train(was_training)
    return int(shape[1]), int(shape[2]), int(shape[3])


def _on_maps(change: Corrected, num_positions: int) -> Corrected:
    """Return a function of maps (B*K, C, h, w), made of one of what the wire carries, (B, K, h, w, C)."""

    def changed(maps_NChw: torch.Tensor) -> torch.Tensor:
        return from_wire(change(to_wire(maps_NChw, num_positions)))

    return changed


def _by_patch(maps_NChw: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Return maps (B*P, C, h, w) as (B, P, C, h, w); no copy."""
    return maps_NChw.reshape(-1, num_patches, *maps_NChw.shape[1:])


def channels_last(tensor_NChw: torch.Tensor) -> torch.Tensor:
    """Return the tensor in channels-last memory order; no copy if it is so already."""
    return tensor_NChw.contiguous(memory_format=torch.channels_last)
