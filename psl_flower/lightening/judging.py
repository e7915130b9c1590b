"""An artefact as it is shipped, its file run by onnxruntime: judged, or in the place of a module of torch.

Shape suffixes: B batch, N images, K classes, C channels, H and W pixels.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.errors import LighteningError, RunError
from psl_flower.inference.export import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnxruntime

# Input and output of an Upper's artefact.
PATCHES, SMASHED = "patches", "smashed"
# Runs before the clock starts, and then at least so many, for at least so long.
_WARM_UP_RUNS, _LEAST_RUNS, _LEAST_S = 3, 15, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast an artefact is, on this machine.

    Attributes
    ----------
    images_per_s : float
        Images in a batch over the median time of a batch.
    latency_ms : float
        Median time of one image alone.
    """

    images_per_s: float
    latency_ms: float


def open_session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of onnxruntime on the CPU.

    Raises
    ------
    LighteningError
        If the runtime does not support an operator of the model, or the file is damaged.
    RunError
        If there is no such file.
    """
    import onnxruntime

    if isinstance(model, Path) and not model.is_file():
        raise RunError(f"{model}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    where = f"{model}: " if isinstance(model, Path) else ""
    with runtime_errors(f"{where}onnxruntime cannot run this model"):
        return onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )


class OnnxModule(nn.Module):
    """Runs an ONNX file of one float32 input and one float32 output on the CPU.

    Parameters
    ----------
    model : Path or bytes
        The file, or what is in it.
    threads : int
        Of onnxruntime.

    Raises
    ------
    LighteningError, RunError
        As `open_session`.
    """

    def __init__(self, model: Path | bytes, threads: int) -> None:
        super().__init__()
        self._session = open_session(model, threads)
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input without the batch, which may be any."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    def forward(self, values: torch.Tensor, flipped: None = None) -> torch.Tensor:
        """Return what the artefact answers, on the CPU; `flipped` stands where a Lower takes which are mirrored."""
        given = {self._input: values.detach().float().contiguous().cpu().numpy()}
        return torch.from_numpy(self._session.run([self._output], given)[0])


@contextlib.contextmanager
def runtime_errors(problem: str) -> Iterator[None]:
    """Raise LighteningError, with `problem` before the runtime's own words, for what onnxruntime raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # The runtime's errors have no base of their own.
    kinds = (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel,
        state.NotImplemented, state.RuntimeException,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        raise LighteningError(f"{problem}: {str(error).splitlines()[0]}") from error


def answers(session: onnxruntime.InferenceSession, batches: Iterable[torch.Tensor]) -> NDArray[np.int64]:
    """Return the classes (N,) that an artefact answers for images, uint8 (B, C, H, W), in batches."""
    found = [session.run([OUTPUT], {INPUT: _pixels(images_BCHW)})[0].argmax(1) for images_BCHW in batches]
    return np.concatenate(found).astype(np.int64)


def measure_speed(
    session: onnxruntime.InferenceSession,
    images_BCHW: torch.Tensor,
    clock: Callable[[], float] | None = None,
    *,
    names: tuple[str, str] = (INPUT, OUTPUT),
    per_image: int = 1,
) -> Speed:
    """Return the speed of an artefact, warm.

    One thread is timed by the processor time it gets, which is its speed on a machine that does nothing else; several
    threads, which wait for one another, by the time that passes.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        As `open_session` makes it, with the threads to measure with.
    images_BCHW : torch.Tensor
        One batch, uint8; its first image alone gives the latency. For an Upper: patches, so many of each image.
    clock : callable, optional
        Seconds; another clock.
    names : tuple[str, str]
        Of the artefact's input and output.
    per_image : int
        Patches of an image, for an Upper.
    """
    clock = clock or _clock(session)
    pixels, (given, wanted) = _pixels(images_BCHW), names
    batch_s = _median_s(lambda: session.run([wanted], {given: pixels}), clock)
    one_s = _median_s(lambda: session.run([wanted], {given: pixels[:per_image]}), clock)
    return Speed(images_per_s=len(pixels) / per_image / batch_s, latency_ms=one_s * 1000)


def _clock(session: onnxruntime.InferenceSession) -> Callable[[], float]:
    # With one thread the runtime computes in the caller's own.
    alone = session.get_session_options().intra_op_num_threads == 1
    return time.thread_time if alone else time.perf_counter


def _median_s(run: Callable[[], object], clock: Callable[[], float]) -> float:
    for _ in range(_WARM_UP_RUNS):
        run()
    times: list[float] = []
    while len(times) < _LEAST_RUNS or sum(times) < _LEAST_S:
        started = clock()
        run()
        times.append(clock() - started)
    return statistics.median(times)


def _pixels(images_BCHW: torch.Tensor) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = (images_BCHW.float() / 255).contiguous().numpy()
    return pixels
