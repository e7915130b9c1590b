"""The same network trained in one process: the oracle of exactness, and the opponent of the throughput benchmark.

It shares models, stores, batch order, augmentation and loss with the federated run, but none of the code that splits a
step over parties: one graph, one backward pass, one optimiser.

Shape suffixes: B batch, P patches, K positions of one Upper, C channels, h and w of a patch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import load_state, save_state
from psl_flower.engine.distillation import Teacher
from psl_flower.engine.inputs import network_input
from psl_flower.engine.lower import without_dropped
from psl_flower.engine.noise import weights_digest
from psl_flower.engine.optimizers import Optimizer, set_lr
from psl_flower.engine.pretrained import started_network
from psl_flower.engine.rounds import Predictions, predictions
from psl_flower.engine.upper_averaging import load_weights, mean, weight_vector
from psl_flower.errors import TrainingError
from psl_flower.losses import loss_parts
from psl_flower.models import PatchSplitNet
from psl_flower.patches.assignment import absent_positions
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import PatchStore, read_all_positions
from psl_flower.system.devices import autocast, to_device
from psl_flower.text import OnProgress
from psl_flower.wire.plan import Plan


class OneProcessTrainer:
    """All parties of a run in one process.

    Parameters
    ----------
    config : RunConfig
        The run's settings; those of transport and wire codecs act as in the federated run: codecs round what crosses
        the cut.
    description : StoreSetDescription
        Describes the stores.
    labels : ndarray
        Classes of all samples, int64.
    stores : sequence of PatchStore
        One for each Upper.
    device : torch.device
        Where everything is computed.
    net : PatchSplitNet, optional
        The network to train, in place; by default a new one with the run's initial weights.
    teacher : Teacher, optional
        Its answers are learnt in addition to the labels.

    Attributes
    ----------
    net : PatchSplitNet
        The network.
    step : int
        Steps applied so far.
    """

    def __init__(
        self,
        config: RunConfig,
        description: StoreSetDescription,
        labels: NDArray[np.int64],
        stores: Sequence[PatchStore],
        device: torch.device = torch.device("cpu"),
        *,
        net: PatchSplitNet | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self._blueprint = blueprint = Blueprint(config, description)
        made = net or started_network(blueprint)
        self.net: Any = to_device(made, device)  # a baseline puts another kind of module here
        self._teacher = teacher
        self.adaptation = blueprint.adaptation()
        self.step = 0
        self._config, self._description, self._stores, self._device = blueprint.config, description, stores, device
        self._task = blueprint.task(labels)
        if self.adaptation is not None:
            self.adaptation.to(device)
        self._averaging, self._noise = blueprint.averaging(), blueprint.code_noise
        self._feedback = blueprint.gradient_feedback()
        self._looks_NPChw: torch.Tensor | None = None
        self._optimizer: Optimizer = blueprint.optimizer_of_all(self.net, self.adaptation)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self._task.total_steps

    @property
    def steps_per_round(self) -> int:
        """Steps of a round."""
        return self._task.steps_per_round

    def train(
        self,
        num_steps: int,
        on_step: Callable[[int, float, float], None] = lambda *_: None,
        absent: Collection[int] = (),
    ) -> None:
        """Run training steps, without the absent Uppers; `on_step` gets (steps applied, full loss, seconds)."""
        for _ in range(num_steps):
            started = time.perf_counter()
            plan = self._task.train_plan(self.step)
            loss = self._loss(plan, absent)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            set_lr(self._optimizer, plan.lr)
            self._optimizer.step()
            if self._feedback is not None:
                self._feedback.apply()
            self.step += 1
            if self._averaging is not None and plan.mode != "look" and self._averaging.is_due(self.step):
                self._average(absent)
            on_step(self.step, float(loss.detach()), time.perf_counter() - started)

    def _loss(self, plan: Plan, absent: Collection[int]) -> torch.Tensor:
        """Return the full loss of a training plan without the absent Uppers, with its graph."""
        targets, flipped_B = self._task.targets(plan)
        dropped_BM = self._task.dropped(plan, len(self.net.uppers), absent)
        frozen = plan.mode == "look"
        missing = absent_positions(self._description.assignment, set(range(len(self.net.uppers))) - set(absent))
        patches_BPChw = self._patches(plan)
        self.net.train()
        with autocast(self._device, self._config.machine.autocast):
            smashed_BPChw = (
                self._look(plan, patches_BPChw, absent) if frozen else self._smash(plan, patches_BPChw, absent)
            )
            given_BPChw = smashed_BPChw
            if dropped_BM is not None:
                given_BPChw = without_dropped(smashed_BPChw, dropped_BM, self._description.assignment)
            logits_BK = self.net.join(given_BPChw, flipped_B)
            upper_logits = None
            if self.adaptation and not frozen:
                upper_logits = self.adaptation.for_all_patches(smashed_BPChw, missing)
        loss = loss_parts(
            logits_BK,
            upper_logits,
            targets.to(self._device),
            self._description.assignment,
            self._config.network.alpha,
            num_absent=len(missing),
            label_smoothing=self._config.training.label_smoothing,
        ).full
        if self._teacher is None:
            return loss
        return self._teacher.loss(
            loss, logits_BK, patches_BPChw, flipped_B,
            activations=self._config.smashed_codec, use_autocast=self._config.machine.autocast,
        )  # fmt: skip

    def _average(self, absent: Collection[int]) -> None:
        uppers = [upper for m, upper in enumerate(self.net.uppers) if m not in absent]
        mean_N = mean([weight_vector(upper) for upper in uppers])
        for upper in uppers:
            load_weights(upper, mean_N)

    def train_resumably(self, checkpoint: Path, what: str, progress: OnProgress, *, advice: str, **kept: Any) -> None:
        """Train to the last step, from the state in `checkpoint` if there is one; it is saved after every round.

        Parameters
        ----------
        checkpoint : Path
            Stays when training is done, so that a finished one is not repeated.
        what : str
            Name of the training, for `progress` and errors.
        progress : callable
            Called as progress(what, steps applied, steps in all).
        advice : str
            What to do if the loss is not finite.
        **kept
            Plain values that are saved with the state.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        RunError
            If the disk refuses, or the checkpoint is damaged.
        """
        if checkpoint.exists():
            self.load_state_dict(load_state(checkpoint))

        def on_step(step: int, loss: float, _: float) -> None:
            if not math.isfinite(loss):
                raise TrainingError(f"{what}: the loss is not finite at step {step}; {advice}")
            progress(what, step, self.total_steps)

        while self.step < self.total_steps:
            to_round_end = self.steps_per_round - self.step % self.steps_per_round
            self.train(min(to_round_end, self.total_steps - self.step), on_step)
            save_state(checkpoint, self.state_dict() | kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next steps depend on."""
        state = {"step": self.step, "net": self.net.state_dict(), "optimizer": self._optimizer.state_dict()}
        owed = {} if self._feedback is None else {"owed": self._feedback.state()}
        return state | owed | ({"adaptation": self.adaptation.state_dict()} if self.adaptation else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to such a state."""
        self.step = state["step"]
        self.net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._feedback is not None:
            self._feedback.restore(state["owed"])
        if self.adaptation:
            self.adaptation.load_state_dict(state["adaptation"])

    @torch.no_grad()
    def evaluate(self, absent: Collection[int] = (), *, split: str = "test") -> Predictions:
        """Return the predictions of the images to test on, or with "valid" to validate on, without absent Uppers."""
        self.net.eval()
        logits, task = [], self._task if split == "valid" else self._task.testing()
        for plan in task.evaluation_plans(self.step):
            with autocast(self._device, self._config.machine.autocast):
                logits.append(self.net.join(self._smash(plan, self._patches(plan), absent)).float().cpu())
        return predictions(torch.cat(logits), task.evaluated, task.labels)

    @torch.no_grad()
    def _look(self, plan: Plan, patches_BPChw: torch.Tensor, absent: Collection[int]) -> torch.Tensor:
        """Return the smashed data (B, P, C', h', w') of frozen Uppers for a step's samples."""
        self.net.uppers.eval()
        freezing = self._task.freezing
        if freezing is None or not freezing.views:
            return self._smash(plan, patches_BPChw, absent)
        if self._looks_NPChw is None:
            # In the batches in which nodes are asked: kernels round otherwise in batches of other sizes.
            looks = [self._smash(each, self._patches(each), absent) for each in self._task.look_plans()]
            self._looks_NPChw = torch.cat(looks)
        return self._looks_NPChw[torch.from_numpy(self._task.places(plan))]

    def _smash(self, plan: Plan, patches_BPChw: torch.Tensor, absent: Collection[int]) -> torch.Tensor:
        codecs = (self._config.smashed_codec, self._config.wire.wire_gradients)
        options: dict[str, Any] = {"absent": absent}
        if self._noise is not None:
            options["normal"] = {
                m: self._noise.of(
                    store.noise_key(), plan, weights_digest(self.net.uppers[m], training=plan.mode == "train"),
                    store.meta.positions, patches_BPChw[:, list(store.meta.positions)].flatten(0, 1),
                )
                for m, store in enumerate(self._stores)
                if m not in absent
            }  # fmt: skip
        if self._feedback is not None:
            options["corrected"] = self._feedback.corrected
        smashed_BPChw: torch.Tensor = self.net.smash_patches(patches_BPChw, *codecs, **options)
        return smashed_BPChw

    def _patches(self, plan: Plan) -> torch.Tensor:
        """Return the normalised patches (B, P, C, h, w) of a plan's samples, augmented for training."""
        stored_BPCHW = read_all_positions(self._stores, plan.sample_indices())
        description, positions = self._description, range(stored_BPCHW.shape[1])
        patches_NChw = network_input(
            stored_BPCHW, positions, plan, self._task.augmentation, description.mean, description.std, self._device
        )
        return patches_NChw.reshape(*stored_BPCHW.shape[:2], *patches_NChw.shape[1:])
