"""The opponent: the whole network in a fresh process, alone on the machine whenever it computes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec
import psutil

from psl_flower.errors import TrainingError
from simulations.child import Child, Tell, serve
from simulations.machine import peak, pss
from simulations.memory import Process
from simulations.throughput.holding import Brake, cut_steps
from simulations.throughput.results import ONE_PROCESS, Measurement, rate


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do: `config` of a run, its number of threads, and its steps."""

    config: dict[str, str | int | float | bool]
    threads: int
    steps: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What the process says at the end; times are Unix time in seconds."""

    imported_at: float
    built_at: float
    ends: tuple[float, ...]
    step_s: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: int
    pss_bytes: int | None


class Opponent(Child[Done]):
    """The process, which can be held and let go; use as a context manager, which ends it.

    Parameters
    ----------
    job : Job
        What it is to do, in the environment that Flower's processes have.
    timeout_s : float
        Longest time without a sign of life while it is not held.
    show : callable
        Called with the number of steps done.

    Attributes
    ----------
    steps : int
        Steps that it is known to have done.
    """

    def __init__(self, job: Job, timeout_s: float, show: Tell = lambda done: None) -> None:
        super().__init__("simulations.throughput.one_process", job, Done, "the one process")
        self.steps = 0
        self._timeout_s, self._show = timeout_s, show
        self._brake = Brake()
        self._done: Done | None = None

    def hold(self) -> None:
        """Stop it where it is."""
        self._brake.hold([psutil.Process(self.pid)])

    def go(self) -> None:
        """Resume it."""
        self._brake.go()

    def wait_for(self, steps: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait for a number of steps, or all; `meanwhile` is called about once a second.

        Raises
        ------
        RunError
            If it fails, with its own last words, or is silent for too long.
        """
        while self.steps < steps and self._done is None:
            said = self.answer(self._timeout_s, meanwhile)
            if isinstance(said, Done):
                self._done = said
            else:
                self.steps = said
                self._show(said)

    def measured(self, repetition: int, warmup: int, batch_sizes: tuple[int, ...]) -> Measurement:
        """Let it run to its end, and return its measurements; the arguments are for these.

        Raises
        ------
        RunError
            As `wait_for`; also if its holds left no step whole.
        """
        self.go()
        self.wait_for(math.inf)
        done = self._done
        assert done is not None
        cut = cut_steps(done.ends[0] - done.step_s[0], done.ends, self._brake.spans)
        return Measurement(
            repetition=repetition,
            mode=ONE_PROCESS,
            images_per_s=rate(done.step_s, batch_sizes, warmup, cut),
            step_s=done.step_s,
            cut=cut,
            batch_sizes=batch_sizes,
            parts_s={},
            bytes_up=0,
            bytes_down=0,
            processes=(Process(role="one process", peak_bytes=done.peak_bytes, pss_bytes=done.pss_bytes),),
            startup_s={"imports": done.imported_at - self.began, "network": done.built_at - done.imported_at},
            loss=sum(done.losses) / len(done.losses),
        )


def work(job: Job, tell: Tell) -> Done:
    """Train, in this process; `tell` is called with the steps done."""
    import torch

    from psl_flower.config import RunConfig
    from psl_flower.engine.one_process import OneProcessTrainer
    from psl_flower.stores.prepare import prepare_stores
    from psl_flower.system.devices import choose_device
    from psl_flower.system.machine import keep_freed_memory

    keep_freed_memory()  # as the Lower and the nodes do

    imported_at = time.time()
    torch.set_num_threads(job.threads)
    config = RunConfig.from_mapping(job.config)
    stores = prepare_stores(config)
    with stores.opened() as opened:
        one_process = OneProcessTrainer(
            config, stores.description, stores.labels, opened, choose_device(config.machine.device)
        )
        built_at = time.time()
        ends, step_s, losses = [], [], []

        def note(step: int, loss: float, seconds: float) -> None:
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of step {step} is not finite; lower lr")
            ends.append(time.time())
            step_s.append(seconds)
            losses.append(loss)
            tell(step)

        one_process.train(job.steps, note)
    return Done(
        imported_at=imported_at,
        built_at=built_at,
        ends=tuple(ends),
        step_s=tuple(step_s),
        losses=tuple(losses),
        peak_bytes=peak(),
        pss_bytes=pss(),
    )


if __name__ == "__main__":
    serve(Job, work)
