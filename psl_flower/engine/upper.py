"""The Upper's side of a step: a party whose data are patches of its positions.

Shape suffixes: B batch, K positions of this Upper, N = B*K, C channels, h and w of a patch or its feature map.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from psl_flower.engine.augment import Augmentation
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.inputs import network_input, normalise
from psl_flower.engine.noise import CodeNoise, weights_digest
from psl_flower.engine.optimizers import Optimizer
from psl_flower.engine.party import PartyEngine, Pass
from psl_flower.engine.task import Task
from psl_flower.engine.upper_averaging import weight_count
from psl_flower.errors import FrameMismatch, ProtocolError
from psl_flower.models.cut import backward_from, from_wire, to_wire
from psl_flower.models.split import smashed_size
from psl_flower.patches.store import PatchStore
from psl_flower.protection.noise import KEY_BYTES, drawn
from psl_flower.system.devices import autocast, compute_dtype, to_device
from psl_flower.wire.node_messages import Claim
from psl_flower.wire.plan import Plan

# Images that an Upper answers for at a time, of those that do not come from its store.
MOST_PATCHES = 1024

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpperOptions:
    """An Upper's options besides its model and store."""

    #: Makes the optimiser for the model's parameters; its learning rate comes with every plan.
    make_optimizer: MakeOptimizer
    #: Per channel, for normalisation (`psl_flower.engine.inputs`).
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation  #: Augmentation drawn in training.
    autocast: bool = False  #: Whether forward passes run under bfloat16 autocast.
    device: torch.device = torch.device("cpu")  #: Device that the model computes on.
    averaged: bool = False  #: Whether the Uppers of this run are averaged; if not, messages about it are refused.
    #: Steps after which the Uppers no longer change (`psl_flower.engine.freezing`); None for never.
    frozen_after: int | None = None
    noise: CodeNoise | None = None  #: Noise added to codes, if any.
    #: Returns the training whose plans of steps and looks alone are accepted; None accepts any plan.
    lessons: Callable[[], Task] | None = None


class UpperEngine(PartyEngine):
    """One Upper: its model, optimiser, patch store and place in the run.

    The model, (N, C, h, w) -> (N, C', h', w'), is moved to the device; the store has the patches of this Upper's
    positions. `teacher`, the Upper of a teacher, is in eval mode and not trained: its smashed data of the same patches
    go up behind the model's own, along channels.
    """

    def __init__(
        self,
        model: nn.Module,
        store: PatchStore,
        options: UpperOptions,
        checkpoints: Checkpoints,
        teacher: nn.Module | None = None,
    ) -> None:
        to_device(model, options.device)
        super().__init__(
            model,
            options.make_optimizer(model.parameters()),
            claim_of(store),
            checkpoints,
            dtype=compute_dtype(options.autocast),
            device=options.device,
            weight_count=weight_count(model) if options.averaged else 0,
            frozen_after=options.frozen_after,
        )
        self.store = store
        self._options = options
        self._teacher = None
        if teacher is not None:
            self._teacher = to_device(teacher, options.device)
        self._noise_key = store.noise_key() if options.noise is not None else b""
        self._digests: dict[bool, tuple[int, bytes]] = {}
        self._lessons: Task | None = None
        (C, H, W), edge = store.meta.patch_shape, options.augmentation.edge
        self._patch_smashed = smashed_size(self.model, (C, H - 2 * edge, W - 2 * edge))

    def smashed_shape(self, plan: Plan) -> tuple[int, ...]:
        """Return the shape (B, K, h', w', C') of a plan's smashed data, without the teacher's."""
        C, h, w = self._patch_smashed
        return (plan.num_samples, len(self.store.meta.positions), h, w, C)

    def forward(self, plan: Plan) -> Pass:
        """Read, normalise and augment a plan's patches and run them forward; (B, K, h', w', C') goes up."""
        self._check(plan)
        started = time.perf_counter()
        patches_NChw = self._read(plan)
        read_s = time.perf_counter() - started
        with autocast(self.device, self._options.autocast):
            normal_Nd = self._normal(plan, patches_NChw)
            smashed_NChw = self.model(patches_NChw) if normal_Nd is None else self.model(patches_NChw, normal_Nd)
        told_NChw = self._with_teacher(smashed_NChw.detach(), patches_NChw)
        smashed_BKhwC = to_wire(told_NChw, len(self.store.meta.positions)).cpu()
        return Pass(smashed_NChw, smashed_BKhwC, read_s)

    def backward(self, graph: torch.Tensor, gradient: torch.Tensor) -> None:
        """Run the backward pass of maps (B*K, C', h', w') from their gradient (B, K, h', w', C')."""
        backward_from(graph, from_wire(gradient.to(graph.device, graph.dtype)))

    def check_patches(self, patches_BKChw: torch.Tensor) -> None:
        """Raise FrameMismatch unless these are patches of 1 to `MOST_PATCHES` images as `of_patches` takes them."""
        (C, H, W), edge = self.store.meta.patch_shape, self._options.augmentation.edge
        wanted, found = (len(self.store.meta.positions), C, H - 2 * edge, W - 2 * edge), tuple(patches_BKChw.shape)
        if patches_BKChw.dtype != torch.uint8 or found[1:] != wanted or not 0 < found[0] <= MOST_PATCHES:
            raise FrameMismatch(
                f"the Lower: expected patches uint8 {wanted} of 1 to {MOST_PATCHES} images, received "
                f"{patches_BKChw.dtype} {found}"
            )

    @torch.no_grad()
    def of_patches(self, patches_BKChw: torch.Tensor) -> torch.Tensor:
        """Return the smashed data (B, K, C', h', w') of patches from elsewhere, float32 on the CPU, in evaluation.

        Noise is drawn again each time. The patches are uint8, at this Upper's positions, with the network's context and
        no margin.
        """
        options, self.model = self._options, self.model.eval()
        pixels_NChw = normalise(patches_BKChw.flatten(0, 1), options.mean, options.std, self.device)
        with autocast(self.device, options.autocast):
            if options.noise is None:
                smashed_NChw = self.model(pixels_NChw)
            else:
                fresh = drawn(
                    os.urandom(KEY_BYTES),
                    [n.to_bytes(4, "little") for n in range(len(pixels_NChw))],
                    options.noise.size,
                )
                smashed_NChw = self.model(pixels_NChw, torch.from_numpy(fresh))
        made: torch.Tensor = smashed_NChw.float().cpu().unflatten(0, patches_BKChw.shape[:2])
        return made

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _check(self, plan: Plan) -> None:
        """Refuse plans by which a server would have more draws of the noise than the run's settings give it."""
        if self._options.noise is not None and plan.mix_weight != 1:
            # Each weight would have another draw.
            raise ProtocolError("the plan mixes images, which a run with code-noise does not")
        if self._options.lessons is None or plan.mode == "evaluate":
            return
        if self._lessons is None:
            self._lessons = self._options.lessons()  # a node that only evaluates may have no images to train on
        steps = self._lessons.total_steps
        if plan.id.step >= steps:
            raise ProtocolError(f"received the plan of step {plan.id.step}, but the run has {steps} steps")
        if not self._lessons.makes(plan):
            raise ProtocolError(
                f"the plan of step {plan.id.step} is not the one that the run's settings make; with code-noise this "
                "node takes no other"
            )

    def _normal(self, plan: Plan, patches_NChw: torch.Tensor) -> torch.Tensor | None:
        if self._options.noise is None:
            return None
        weights, positions = self._digest(training=plan.mode == "train"), self.store.meta.positions
        return self._options.noise.of(self._noise_key, plan, weights, positions, patches_NChw)

    def _digest(self, *, training: bool) -> bytes:
        """Return the `weights_digest` of the model, computed once for each change."""
        known = self._digests.get(training)
        if known is None or known[0] != self.changes:
            known = self._digests[training] = self.changes, weights_digest(self.model, training=training)
        return known[1]

    def _with_teacher(self, smashed_NChw: torch.Tensor, patches_NChw: torch.Tensor) -> torch.Tensor:
        if self._teacher is None:
            return smashed_NChw
        with torch.no_grad(), autocast(self.device, self._options.autocast):
            return torch.cat([smashed_NChw, self._teacher(patches_NChw)], 1)

    def _read(self, plan: Plan) -> torch.Tensor:
        options, stored_BKCHW = self._options, self.store.read(plan.sample_indices())
        positions = self.store.meta.positions
        return network_input(
            stored_BKCHW, positions, plan, options.augmentation, options.mean, options.std, options.device
        )


def claim_of(store: PatchStore) -> Claim:
    """Return the claim that a node sends the Lower for a store."""
    meta = store.meta
    return Claim(
        upper=meta.upper, positions=meta.positions, num_samples=len(store), dataset=meta.dataset, epoch=meta.epoch
    )
