"""The opponent: the whole network in a fresh process, alone on the machine.

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
from typing import Any

import msgspec

from psl_flower.errors import PslError, RunError, TrainingError
from psl_flower.launch.superlink import environment, last_line
from simulations.machine import peak, pss
from simulations.throughput.results import ONE_PROCESS, Measurement, Process, rate

_STOP_TIMEOUT_S = 10.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do: `config` as of a run, its number of threads, and its steps."""

    config: dict[str, str | int | float | bool]
    threads: int
    steps: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What the process says at the end; times are Unix time in seconds."""

    imported_at: float
    built_at: float
    step_s: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: int
    pss_bytes: int | None


def measure(
    job: Job, repetition: int, warmup: int, batch_sizes: tuple[int, ...], timeout_s: float, show: Callable[[int], None]
) -> Measurement:
    """Run the job in a fresh process with the environment that Flower's processes have.

    Parameters
    ----------
    job : Job
        What it is to do.
    repetition, warmup : int
        For the measurement.
    batch_sizes : tuple of int
        Images of every step.
    timeout_s : float
        Longest time without a sign of life.
    show : callable
        Called with the number of steps done.

    Raises
    ------
    RunError
        If the process fails; with its own last words.
    """
    began = time.time()
    command = [sys.executable, "-m", "simulations.throughput.one_process"]
    with subprocess.Popen(
        command, env=environment(), cwd=Path(__file__).parents[2], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        done = _listen(process, job, timeout_s, show)
    return Measurement(
        repetition=repetition,
        mode=ONE_PROCESS,
        images_per_s=rate(done.step_s, batch_sizes, warmup),
        step_s=done.step_s,
        batch_sizes=batch_sizes,
        parts_s={},
        bytes_up=0,
        bytes_down=0,
        processes=(Process(role="one process", peak_bytes=done.peak_bytes, pss_bytes=done.pss_bytes),),
        startup_s={"imports": done.imported_at - began, "network": done.built_at - done.imported_at},
        loss=sum(done.losses) / len(done.losses),
    )


def _listen(process: subprocess.Popen[str], job: Job, timeout_s: float, show: Callable[[int], None]) -> Done:
    """Give the process its job and return what it says at the end; it is gone then."""
    assert process.stdin and process.stdout and process.stderr
    lines: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, errors.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # its own words tell why
            process.stdin.write(msgspec.json.encode(job).decode())
            process.stdin.close()
        while line := lines.get(timeout=timeout_s):
            told: dict[str, Any] = msgspec.json.decode(line)
            if "step" not in told:
                return msgspec.convert(told, Done)
            show(told["step"])
    except queue.Empty:
        raise RunError(f"the one process has not said anything for {timeout_s:g} s") from None
    finally:
        process.kill()
        for reader in readers:
            reader.join(_STOP_TIMEOUT_S)
    raise RunError(f"the one process failed: {last_line(''.join(errors))}")


def _read(stream: Any, put: Callable[[str], None]) -> None:
    """Hand over all lines of a stream, and an empty one at its end."""
    for line in stream:
        put(line)
    put("")


def work(job: Job) -> Done:
    """Train, in this process."""
    import torch

    from psl_flower.config import RunConfig
    from psl_flower.data.preparing import prepare_stores
    from psl_flower.devices import choose_device
    from psl_flower.engine.monolith import Monolith
    from psl_flower.machine import keep_freed_memory

    keep_freed_memory()  # as the Lower and the nodes do

    imported_at = time.time()
    torch.set_num_threads(job.threads)
    config = RunConfig.from_mapping(job.config)
    stores = prepare_stores(config)
    opened = [stores.open(m) for m in range(stores.manifest.num_uppers)]
    monolith = Monolith(config, stores.manifest, stores.labels, opened, choose_device(config.device))
    built_at = time.time()
    step_s, losses = [], []

    def note(step: int, loss: float, seconds: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of step {step} is not finite; lower lr")
        step_s.append(seconds)
        losses.append(loss)
        print(f'{{"step": {step}}}', flush=True)

    monolith.train(job.steps, note)
    return Done(
        imported_at=imported_at,
        built_at=built_at,
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
