"""The two sides of a step for models and data of any kind: a party's, and that of the model behind the cut.

Shape suffix B: batch.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.drawing import drawing
from psl_flower.engine.finite import blame, require_finite
from psl_flower.engine.head import HeadEngine
from psl_flower.engine.optimizers import set_lr
from psl_flower.engine.party import PartyEngine, Pass
from psl_flower.engine.steps import StepLoss
from psl_flower.errors import ConfigError, NodeError, TrainingError
from psl_flower.models.cut import backward_from
from psl_flower.seeds import derive
from psl_flower.split.holders import party_of
from psl_flower.split.lone_sample import REFUSED, lone_sample
from psl_flower.split.measuring import Loss, told_as
from psl_flower.split.sent import Outputs, Sent
from psl_flower.split.side import GivenOptimizer, PartySide, Reader, optimizer_of
from psl_flower.system.generator import seeded
from psl_flower.wire.plan import Plan

TOP = "top"


def init_seed(seed: int, name: str) -> int:
    """Return the seed under which a party's side, or `TOP`, is made."""
    return derive(seed, "init", name)


class SideEngine(PartyEngine):
    """One party's side of a step.

    `m` is the party's number, its place among the training's parties; `sent` what its net gives for one sample.
    `averaged` is whether the training averages the holders of its party.
    """

    def __init__(
        self, m: int, name: str, sent: Sent, side: PartySide, checkpoints: Checkpoints, *, averaged: bool = False
    ) -> None:
        self._name, self._sent, self._side = name, sent, side
        device = torch.device(side.device)
        net = side.net.to(device)
        self._reader = Reader(side, self.name)
        optimizer = optimizer_of(net, side.optimizer, self.name)
        claim = self._reader.claim(m)
        super().__init__(
            net, optimizer, claim, checkpoints,
            dtype=torch.float32, device=device, weight_count=claim.shares if averaged else 0,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The party's name."""
        return f"party {self._name!r}"

    @property
    def draws_as(self) -> str:
        """The party's name."""
        return self._name

    def smashed_shape(self, plan: Plan) -> tuple[int, ...]:
        """Return the shape (B, ...) of a plan's outputs."""
        return (plan.num_samples, *self._sent.wire_shape)

    def forward(self, plan: Plan) -> Pass:
        """Read the inputs of a plan's samples and run them forward; zeros stand for those that the party lacks.

        Raises
        ------
        ConfigError
            If the output has not the shape that the training names, or is not float32.
        TrainingError
            If the net raises.
        """
        started = time.perf_counter()
        samples_B = plan.sample_indices()
        present_B = self._reader.present(samples_B)
        if present_B is not None:
            samples_B = samples_B[present_B]
        if not len(samples_B):
            return Pass(None, torch.zeros(self.smashed_shape(plan)), 0.0)
        inputs = self._reader.read(samples_B)
        read_s = time.perf_counter() - started
        lone = plan.mode == "train" and len(samples_B) == 1
        with self._running(lone):
            output = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        smashed = self._sent.packed(output, len(samples_B), self.name)
        local = None
        if plan.mode == "train" and self._side.local_loss is not None:
            with told_as(f"{self.name}: its local loss"):
                local = scalar(self._side.local_loss(output, inputs), f"{self.name}: its local loss")
        if present_B is not None:
            whole = smashed.new_zeros(self.smashed_shape(plan))
            smashed = whole.index_put((torch.from_numpy(np.flatnonzero(present_B)).to(smashed.device),), smashed)
        return Pass((smashed, local), smashed.detach().contiguous().cpu(), read_s)

    @contextlib.contextmanager
    def _running(self, lone: bool) -> Iterator[None]:
        """Name the party whose net raises, and give advice if it cannot handle a single sample."""
        if not lone:
            with told_as(f"{self.name}: its net"):
                yield
            return
        with told_as(f"{self.name}: {REFUSED}"), lone_sample(self.model):
            yield

    def backward(self, graph: tuple[torch.Tensor, torch.Tensor | None] | None, gradient: torch.Tensor) -> None:
        """Run the backward pass of an output from its gradient, and of the local loss, if there is one."""
        if graph is None:
            return  # the party has none of these samples
        output, local = graph
        roots = [] if local is None else [(local, torch.ones_like(local))]
        roots = [(root, given) for root, given in [*roots, (output, gradient.to(output.device))] if root.requires_grad]
        # One alone needs no torch.autograd.backward, which loads sympy in every process.
        if len(roots) == 1:
            backward_from(*roots[0])
        elif roots:
            torch.autograd.backward([root for root, _ in roots], [given for _, given in roots])

    def close(self) -> None:
        """Release nothing: the data are the caller's."""


class TopEngine(HeadEngine):
    """The side of the model that joins the parties' outputs and is held against the targets, here or at a party.

    Parameters
    ----------
    top : nn.Module
        Called with what each party sent, in the order of the parties.
    sent : mapping
        What each party sends, by its name.
    loss : callable or None
        Called with what the model returns and the batch's targets; returns a scalar. None if a party has the labels.
    make_optimizer : callable or Optimizer
        As in `PartySide`.
    device : torch.device
        Where it computes.
    returned : Sent or None
        What the model returns for one sample, if a party has the labels.
    missing : mapping, optional
        By party, which samples it lacks, (N,) of all; read at every step. A model whose `forward` has a parameter
        `present` is called with a mask (B, parties), false for what a party lacks of the batch.
    num_holders : int, optional
        Those that send something up, if a party may have several.
    """

    def __init__(
        self,
        top: nn.Module,
        sent: Mapping[str, Sent],
        loss: Loss | None,
        make_optimizer: GivenOptimizer,
        device: torch.device,
        returned: Sent | None = None,
        missing: Mapping[int, NDArray[np.bool_]] | None = None,
        num_holders: int | None = None,
    ) -> None:
        top.to(device)
        optimizer = optimizer_of(top, make_optimizer, TOP)
        numbers = range((len(sent) if num_holders is None else num_holders) + (returned is not None))
        super().__init__(top, optimizer, numbers, device=device)
        self._sent, self._loss, self.returned = dict(sent), loss, returned
        self._missing, self._takes_present = {} if missing is None else missing, takes_present(top)

    @property
    def about(self) -> str:
        """The parties' names."""
        return f"parties {', '.join(self._sent)}"

    @property
    def mid_step(self) -> tuple[int, ...]:
        """The party that has the labels, if one has."""
        return () if self.returned is None else self.assignment[-1:]

    def train_step(
        self, plan: Plan, smashed: Mapping[int, torch.Tensor], targets_B: torch.Tensor
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        """Forward, loss and backward; the own update waits for `update`, so that the gradients can go out first.

        Return the loss, and the gradient at what each party sent, contiguous, on the CPU.

        Raises
        ------
        TrainingError
            If the loss is not one finite number.
        """
        assert self._loss is not None
        leaves = self._leaves(smashed)
        with drawing(plan, TOP, self.device):
            outputs = self._joined(plan, leaves)
            with told_as("the loss"):
                loss = scalar(self._loss(outputs, targets_B.to(self.device)), "the loss")
        value = finite(loss, self.step, leaves, list(self._sent))
        return self._learnt(plan, leaves, value, loss, None)

    def train_step_elsewhere(
        self,
        plan: Plan,
        smashed: Mapping[int, torch.Tensor],
        learn: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        """Do what `train_step` does where a party has the labels.

        `learn` is called with what the model returned, packed as on the wire (B, ...), on the CPU; it returns the loss
        and its gradient there. Raises whatever `learn` raises; its error names parties that sent values that are not
        finite, if there are any.
        """
        assert self.returned is not None
        leaves = self._leaves(smashed)
        with drawing(plan, TOP, self.device):
            outputs = self._joined(plan, leaves)
        packed = self.returned.packed(outputs, plan.num_samples, TOP)
        try:
            value, gradient = learn(packed.detach().contiguous().cpu())
        except (NodeError, TrainingError) as error:
            if senders := blame(leaves, list(self._sent)):
                raise TrainingError(f"{error}{senders}") from error
            raise
        return self._learnt(plan, leaves, value, packed, gradient.to(self.device))

    @torch.no_grad()
    def outputs(self, plan: Plan, smashed: Mapping[int, torch.Tensor]) -> Outputs:
        """Return the model's outputs in evaluation mode, on the CPU."""
        self.lower.eval()
        with drawing(plan, TOP, self.device):
            outputs = self.lower(*self._unpacked(smashed), **self._present(plan))
        return moved(outputs, "cpu")

    def _leaves(self, smashed: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Begin a step; return what the parties sent as leaves of a graph."""
        self._update_due = False
        self.lower.train()
        return {m: smashed[m].to(self.device).requires_grad_() for m in sorted(smashed)}

    def _joined(self, plan: Plan, leaves: Mapping[int, torch.Tensor]) -> Outputs:
        with told_as(TOP):
            outputs: Outputs = self.lower(*self._unpacked(leaves), **self._present(plan))
        return outputs

    def _present(self, plan: Plan) -> dict[str, torch.Tensor]:
        """Return the mask of the batch as an argument, if the model takes it."""
        if not self._takes_present:
            return {}
        samples_B = plan.sample_indices()
        present_BP = torch.ones(len(samples_B), len(self._sent), dtype=torch.bool)
        for m, missing_N in self._missing.items():
            if m < len(self._sent):
                present_BP[:, m] = torch.from_numpy(~missing_N[samples_B])
        return {"present": present_BP.to(self.device)}

    def _learnt(
        self,
        plan: Plan,
        leaves: Mapping[int, torch.Tensor],
        value: float,
        root: torch.Tensor,
        gradient: torch.Tensor | None,
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        """Run the backward pass from a root: the loss, or a tensor with a given gradient; leave the update open."""
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        if gradient is None:
            root.backward()
        elif root.requires_grad:
            backward_from(root, gradient)
        if self._optimizer is not None:
            set_lr(self._optimizer, plan.lr)
        self._update_due = True
        gradients = {
            m: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.contiguous() for m, leaf in leaves.items()
        }
        report = StepLoss(full=value, lower=value, uppers=0.0, correct=0)
        return report, {m: each.cpu() for m, each in gradients.items()}

    def _unpacked(self, smashed: Mapping[int, torch.Tensor]) -> list[Outputs]:
        return [sent.unpacked(smashed[m].to(self.device)) for m, sent in enumerate(self._sent.values())]


def finite(
    loss: torch.Tensor, step: int, sent: Mapping[int, torch.Tensor] | None = None, names: Sequence[str] = ()
) -> float:
    """Return the value of a step's loss; raises TrainingError unless it is finite, as `require_finite` does."""
    value = float(loss.detach())
    require_finite(value, step, "data", sent, names)
    return value


def scalar(value: object, what: str) -> torch.Tensor:
    """Return a loss as it is; raises TrainingError unless it is one number with a gradient."""
    if not isinstance(value, torch.Tensor):
        raise TrainingError(f"{what}: expected a tensor of one number, got {type(value).__name__}")
    if value.dim() != 0:
        raise TrainingError(f"{what}: expected one number, got a tensor of shape {tuple(value.shape)}; take its mean")
    return value


def made(make: Callable[[], Any], seed: int, name: str) -> Any:
    """Call a function while torch draws from the seed of a party, or of `TOP`; return its result."""
    with seeded(init_seed(seed, party_of(name))), told_as(TOP if name == TOP else f"party {name!r}"):
        return make()


def takes_present(top: nn.Module) -> bool:
    """Check if a model's `forward` has a parameter named `present`."""
    return "present" in inspect.signature(top.forward).parameters


@torch.no_grad()
def returned_by(top: nn.Module, sent: Mapping[str, Sent]) -> Sent:
    """Return the output of the model behind the cut for one sample, from a pass over two samples of zeros.

    Raises
    ------
    ConfigError
        If it does not return one row per sample, or other numbers than float32.
    TrainingError
        If it raises.
    """
    zeros = [each.unpacked(torch.zeros(2, *each.wire_shape)) for each in sent.values()]
    mode, device = top.training, next((each.device for each in top.parameters()), torch.device("cpu"))
    top.eval()
    with seeded(0), told_as(TOP):
        present = {"present": torch.ones(2, len(zeros), dtype=torch.bool, device=device)} if takes_present(top) else {}
        output = top(*(moved(each, device) for each in zeros), **present)
    top.train(mode)
    parts = output if isinstance(output, tuple) else (output,)
    if not all(isinstance(part, torch.Tensor) and part.dim() and len(part) == 2 for part in parts):
        raise ConfigError(f"{TOP}: expected it to return tensors with one row per sample, got {type(output).__name__}")
    found = Sent(tuple(tuple(part.shape[1:]) for part in parts))
    found.packed(output, 2, TOP)
    return found


def moved(given: Outputs, device: torch.device | str) -> Outputs:
    """Return a tensor, or a tuple of some, on a device."""
    return tuple(part.to(device) for part in given) if isinstance(given, tuple) else given.to(device)
