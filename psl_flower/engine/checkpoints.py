"""Checkpoints of one party, numbered by steps applied and written atomically."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle  # nosec B403 # for the name of its error: torch.load reads with weights_only
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psl_flower.engine.optimizers import Optimizer
from psl_flower.errors import NoCheckpoint, RunError, TrainingError
from psl_flower.system.files import write_file
from psl_flower.system.folders import step_files
from psl_flower.wire.node_messages import Claim

log = logging.getLogger("psl_flower")

# The newest committed one is always among the last two: the Lower commits a step before it asks for the next.
_KEPT = 3
_DIGEST_BYTES = 32


class Checkpoints:
    """The checkpoints in one folder; `step` counts the steps applied, so 0 is the initial state.

    The folder is made when first written to. The checkpoint of step `kept` stays, however old; 0 for none.
    """

    def __init__(self, folder: str | Path, kept: int = 0) -> None:
        self.folder, self.kept = Path(folder), kept

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps durably, then drop all but the newest few up to it.

        The number of threads that this process computes with is written as well (`load_for`).

        Raises
        ------
        RunError
            If the disk refuses; earlier checkpoints are unchanged.
        TrainingError
            If a number in the state is not finite, so that no run could continue from it. Earlier checkpoints are kept.
        """
        if not all(_is_finite(value) for value in values_in(state)):
            raise TrainingError(
                f"step {step}: weights or momentum are not finite; the last checkpoint is kept. "
                "Begin anew with a lower lr, or check the data"
            )
        path = self._path(step)
        save_state(path, {"threads": torch.get_num_threads(), **state})
        # An abandoned attempt may have left later ones, which must not make this one count as old.
        for old in [found for found in self.steps() if found <= step][:-_KEPT]:
            if not self.kept or old != self.kept:
                self._path(old).unlink(missing_ok=True)
        return path

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; none of them was committed."""
        for later in [found for found in self.steps() if found > step]:
            self._path(later).unlink(missing_ok=True)

    def load(self, step: int) -> dict[str, Any]:
        """Return the state after `step` steps, on the CPU.

        Raises
        ------
        NoCheckpoint
            If there is none.
        RunError
            If it is damaged.
        """
        if step not in self.steps():
            found = ", ".join(str(s) for s in self.steps()) or "none"
            raise NoCheckpoint(f"{self.folder}: no checkpoint of step {step} (there: {found}); use another run")
        return load_state(self._path(step))

    def load_for(self, whose: str, step: int) -> dict[str, Any]:
        """Return the state of `load` to continue from; warn, naming its party, if it was made with other threads."""
        state = self.load(step)
        _say_other_threads(state, whose)
        return state

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, ascending."""
        return list(step_files(self.folder))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"


def values_in(state: object) -> Iterator[object]:
    """Yield all values, tensors among them, of nested dictionaries, lists and tuples."""
    if isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from values_in(part)
    else:
        yield state


def same_weights(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Check if weights have the same names, and are equal bit by bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())


def _on_cpu(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on_cpu(value) for value in state)
    return state.cpu() if isinstance(state, torch.Tensor) else state


def party_state(step: int, claim: Claim, model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Return the state that a party continues from after `step` steps."""
    return {
        "step": step,
        "upper": claim.upper,
        "dataset": claim.dataset,
        "model": model.state_dict(),
        "optimizer": {} if optimizer is None else optimizer.state_dict(),
    }


def load_party(state: dict[str, Any], claim: Claim, model: nn.Module, optimizer: Optimizer | None, name: str) -> None:
    """Put a party's model and optimiser in a state of `party_state`; `name` is for errors.

    Raises
    ------
    RunError
        If the state is another party's or another network's.
    """
    if (state.get("upper"), state.get("dataset")) != (claim.upper, claim.dataset):
        raise RunError(f"the checkpoint is not of {name} and this dataset")
    with same_network():
        model.load_state_dict(state["model"])
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])


@contextmanager
def same_network(what: str = "the checkpoint is") -> Iterator[None]:
    """Wrap the loading of a state; raises RunError, "`what` of another network", if it does not fit the model."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{what} of another network: {str(error).splitlines()[0]}") from error


def _say_other_threads(state: dict[str, Any], who: str) -> None:
    """Log a warning if a state was made with another number of threads than this process computes with."""
    before, now = state.get("threads"), torch.get_num_threads()
    if before not in (None, now):
        log.warning(
            "%s: the checkpoint was made with %s threads, this process computes with %s; the weights may differ in "
            "their last bits from those of an uninterrupted run",
            who, before, now,
        )  # fmt: skip


def save_state(path: Path, state: dict[str, Any], *, durable: bool = True) -> None:
    """Write tensors and plain values atomically to a file, their SHA-256 last; make its folder.

    Tensors are stored as CPU tensors, regardless of their device.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    buffer = io.BytesIO()
    torch.save(_on_cpu(state), buffer)
    with buffer.getbuffer() as content:
        digest = hashlib.sha256(content).digest()
    buffer.write(digest)
    write_file(path, buffer.getbuffer(), RunError, mode=0o600, parents=True, durable=durable)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, to the CPU: tensors and plain values only, never code.

    Raises
    ------
    RunError
        If the file is missing or damaged.
    """
    try:
        content = memoryview(path.read_bytes())
        # torch itself would load corrupted numbers silently.
        if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
            raise RunError(f"{path}: cannot be read: the file is damaged; resume from another run")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise RunError(f"{path}: cannot be read: {str(error).splitlines()[0] if str(error) else error}") from error
    return state
