"""The opponent: the whole network in a fresh process, alone on the machine whenever it computes.

`python -m simulations.throughput.one_process` reads a `Job` on standard input and writes one JSON object a line.
"""

from __future__ import annotations

import contextlib
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import psutil

from psl_flower.errors import PslError, RunError, TrainingError
from psl_flower.launch.environment import environment
from psl_flower.launch.superlink import last_line
from simulations.machine import peak, pss
from simulations.memory import Process
from simulations.throughput.holding import Brake, cut_steps
from simulations.throughput.results import ONE_PROCESS, Measurement, rate

_STOP_TIMEOUT_S = 10.0
_POLL_S = 1.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do: `config` as of a run, its number of threads, and its steps."""

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


class Opponent:
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

    def __init__(self, job: Job, timeout_s: float, show: Callable[[int], None] = lambda done: None) -> None:
        self.steps = 0
        self._job, self._timeout_s, self._show = job, timeout_s, show
        self._brake = Brake()
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        self._done: Done | None = None

    def __enter__(self) -> Opponent:
        """Start it."""
        self._began = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simulations.throughput.one_process"],
            env=environment(), cwd=Path(__file__).parents[2], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._handle = psutil.Process(self._process.pid)
        self._readers = [
            threading.Thread(target=_read, args=(self._process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=_read, args=(self._process.stderr, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its own words tell why
            self._process.stdin.write(msgspec.json.encode(self._job).decode())
            self._process.stdin.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, held or not."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(_STOP_TIMEOUT_S)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream
            stream.close()

    def hold(self) -> None:
        """Stop it where it is."""
        self._brake.hold([self._handle])

    def go(self) -> None:
        """Let it go on."""
        self._brake.go()

    def wait_for(self, steps: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until it has done so many steps, or all; `meanwhile` is called about once a second.

        Raises
        ------
        RunError
            If it fails, with its own last words, or is silent for too long.
        """
        while self.steps < steps and self._done is None:
            self._take(self._line(meanwhile))

    def finish(self, repetition: int, warmup: int, batch_sizes: tuple[int, ...]) -> Measurement:
        """Let it go on to its end, and return what it measured; the arguments are for that.

        Raises
        ------
        RunError
            As `wait_for`; also if its holds left no step whole.
        """
        self.go()
        while self._done is None:
            self._take(self._line())
        done, first_s = self._done, self._done.step_s[0]
        cut = cut_steps(done.ends[0] - first_s, done.ends, self._brake.spans)
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
            startup_s={"imports": done.imported_at - self._began, "network": done.built_at - done.imported_at},
            loss=sum(done.losses) / len(done.losses),
        )

    def _take(self, line: str) -> None:
        told: dict[str, Any] = msgspec.json.decode(line)
        if "step" in told:
            self.steps = told["step"]
            self._show(self.steps)
        else:
            self._done = msgspec.convert(told, Done)

    def _line(self, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Return the next line that it says."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if line := self._lines.get(timeout=_POLL_S):
                    return line
                self._readers[1].join(_STOP_TIMEOUT_S)
                raise RunError(f"the one process failed: {last_line(''.join(self._errors))}")
            meanwhile()
        raise RunError(f"the one process has not said anything for {self._timeout_s:g} s")


def _read(stream: Any, put: Callable[[str], None]) -> None:
    """Hand over all lines of a stream, and an empty one at its end."""
    for line in stream:
        put(line)
    put("")


def work(job: Job) -> Done:
    """Train, in this process."""
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
    opened = [stores.open(m) for m in range(stores.description.num_uppers)]
    monolith = OneProcessTrainer(
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
        print(f'{{"step": {step}}}', flush=True)

    monolith.train(job.steps, note)
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
    try:
        print(msgspec.json.encode(work(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))).decode(), flush=True)
    except PslError as error:
        sys.exit(str(error))
