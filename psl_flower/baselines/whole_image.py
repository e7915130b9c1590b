"""The backbone on whole images: what patch-split learning is compared with, made of the same parts.

A grid of one patch makes the patch-split network the plain backbone, so recipe, batch order, augmentation, loss and
evaluation are those of `psl_flower.engine.one_process`.

Shape suffixes: B batch, P patches, C channels, H and W pixels of an image, h and w of a patch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.config import BORDERLESS, UNFROZEN, UNPROTECTED, RunConfig
from psl_flower.engine.batches import BatchOrder
from psl_flower.engine.build import Blueprint
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.optimizers import Proximal
from psl_flower.engine.schedule import Schedule
from psl_flower.errors import TrainingError
from psl_flower.models import PatchSplitNet
from psl_flower.patches import PatchGrid
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import PatchStore
from psl_flower.stores.store_set import store_request
from psl_flower.system.devices import to_device


def whole_image_config(config: RunConfig) -> RunConfig:
    """Return the settings with the whole image as the one patch, in a plain store, without Adaptation Net and wire.

    Raises
    ------
    DatasetNotFound, DataError
        If the size of the images is not set and the dataset cannot be read.
    """
    size = config.data.image_size
    if size == (0, 0):
        image_HWC, _ = next(store_request(config).open_source().samples("train"))
        size = (image_HWC.shape[0], image_HWC.shape[1])
    return config.replace(
        grid="", patch_size=size, stride=(0, 0), fit="exact", margin=0, uppers=1, alpha=0.0, stores="plain",
        adaptation_server=False, adaptation_node="", wire_activations="float32", wire_gradients="float32",
        gradient_feedback=False, **UNPROTECTED, **BORDERLESS,
        upper_weights="", upper_weights_hash="", **UNFROZEN,
    )  # fmt: skip


class LocalTraining(OneProcessTrainer):
    """One client's passes over its own whole images.

    Parameters
    ----------
    config : RunConfig
        From `whole_image_config`.
    description : StoreSetDescription
        Describes the store of whole images.
    labels : ndarray
        Classes of all samples, int64.
    store : PatchStore
        Holds the client's images, and may hold others.
    samples : ndarray
        Global indices of the client's images, int64.
    total_epochs : int
        Local passes of the whole run: the learning rate follows the schedule over them.
    proximal : float
        FedProx' mu, 0 or more: pulls the weights back to those that each call of `train_epochs` begins with.
    device : torch.device
        Where it computes.
    """

    def __init__(
        self,
        config: RunConfig,
        description: StoreSetDescription,
        labels: NDArray[np.int64],
        store: PatchStore,
        samples: NDArray[np.int64],
        *,
        total_epochs: int,
        proximal: float = 0.0,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        super().__init__(config, description, labels, [store], device)
        training = self._blueprint.config.training
        order = BatchOrder(pool=samples, batch_size=training.batch_size, seed=training.seed)
        schedule = Schedule(
            kind=training.schedule,
            peak=training.lr,
            total_steps=total_epochs * order.steps_per_epoch,
            warm_up=training.warm_up_steps,
        )
        self._task = dataclasses.replace(self._task, order=order, schedule=schedule)
        self._proximal = proximal

    @property
    def num_samples(self) -> int:
        """Images that a pass uses, but for a single left-over one."""
        return len(self._task.order.pool)

    def num_steps(self, num_epochs: int) -> int:
        """Return the steps of some passes."""
        return num_epochs * self._task.order.steps_per_epoch

    def train_epochs(self, first: int, num: int) -> float:
        """Pass `num` times over the images from epoch `first` on, with fresh momentum; return the mean loss.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        """
        parameters = list(self.net.parameters())
        self._optimizer = self._blueprint.optimizer(parameters)
        if self._proximal:
            self._optimizer = Proximal(self._optimizer, parameters, self._proximal)
        self.step = self.num_steps(first)
        losses: list[float] = []

        def note(step: int, loss: float, seconds: float) -> None:
            if not math.isfinite(loss):
                raise TrainingError(
                    f"step {step}: the loss is {loss}; start again with a lower lr, or check the images"
                )
            losses.append(loss)

        self.train(self.num_steps(num), note)
        return sum(losses) / len(losses)


class MergedPatches(OneProcessTrainer):
    """The backbone on whole images that were augmented patch by patch, as separate stores must.

    So it differs from a patch-split run in the network alone. Where the stores have a margin, these are shifts of the
    whole image. Parameters are those of `OneProcessTrainer`, for the stores of a patch grid, with settings whose alpha
    is 0.
    """

    def __init__(
        self,
        config: RunConfig,
        description: StoreSetDescription,
        labels: NDArray[np.int64],
        stores: list[PatchStore],
        device: torch.device = torch.device("cpu"),
    ) -> None:
        config = config.replace(**UNPROTECTED, **BORDERLESS)
        super().__init__(config, description, labels, stores, device)
        whole = whole_image_description(description)
        blueprint = Blueprint(config, whole)
        net = to_device(blueprint.network(), device)
        self.net = _Merging(net, self._blueprint.grid, description.num_uppers)
        self._averaging = self._feedback = None  # nothing crosses a cut
        self._optimizer = blueprint.optimizer(self.net.parameters())


def whole_image_description(description: StoreSetDescription) -> StoreSetDescription:
    """Return the manifest of the same images in one patch each."""
    size = description.image_size
    return msgspec.structs.replace(description, patch_size=size, stride=size, fit="exact", margin=0, assignment=(0,))


class _Merging(nn.Module):
    """A network on whole images with the interface of `PatchSplitNet` on patches."""

    def __init__(self, net: PatchSplitNet, grid: PatchGrid, num_uppers: int) -> None:
        super().__init__()
        self.net, self.grid = net, grid
        self.uppers = range(num_uppers)  # who holds the patches; no models of theirs

    def smash_patches(
        self, patches_BPChw: torch.Tensor, activations: str, gradients: str, absent: Collection[int] = ()
    ) -> torch.Tensor:
        """Return the patches unchanged; only `join` assembles whole images from them."""
        return patches_BPChw

    def join(self, patches_BPChw: torch.Tensor, flipped: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (B, classes) of whole images, whose grid is mirrored where their patches were."""
        if flipped is not None:
            rows, cols = self.grid.rows, self.grid.cols
            by_row = patches_BPChw.reshape(-1, rows, cols, *patches_BPChw.shape[2:])
            mirrored = by_row.flip(2).flatten(1, 2)
            chosen = flipped.to(patches_BPChw.device)[:, None, None, None, None]
            patches_BPChw = torch.where(chosen, mirrored, patches_BPChw)
        logits: torch.Tensor = self.net(self.grid.merge(patches_BPChw))
        return logits
