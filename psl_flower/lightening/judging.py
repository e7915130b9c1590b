"""Measures an artefact, as onnxruntime runs its file: its answers, and its speed.

Shape suffixes: B batch, N images, K classes, C channels, H and W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.engine.automatic_settings import split_training
from psl_flower.inference.onnx_files import INPUT, OUTPUT
from psl_flower.patches.description import StoreSetDescription
from psl_flower.seeds import derive
from psl_flower.text import counted

if TYPE_CHECKING:
    import onnxruntime

# Input and output of an Upper's artefact.
PATCHES, SMASHED = "patches", "smashed"
# Runs before the clock starts; then the least number of timed runs, and the least seconds that they take in all.
_WARM_UP_RUNS, _LEAST_RUNS, _LEAST_S = 3, 15, 1.0
_PARTS = 5
_CALIBRATION_IMAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """An artefact's speed on this machine."""

    images_per_s: float  #: Images in a batch over the median time of a batch.
    latency_ms: float  #: Median time of one image alone.
    #: Half the range of the medians of parts of the measurement, as a share of the whole's: differences within it are
    #: noise.
    images_per_s_spread: float = 0.0
    latency_spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesToJudge:
    """The images that accuracy is measured on, by global sample index."""

    choose_N: NDArray[np.int64]  #: Models are chosen by these alone, int64.
    report_N: NDArray[np.int64]  #: Accuracy on these is only reported, int64; may be empty.
    about: str  #: Description in words.

    @property
    def all_N(self) -> NDArray[np.int64]:
        """All of them, those to choose by first."""
        return np.concatenate([self.choose_N, self.report_N])


def images_to_judge(config: RunConfig, description: StoreSetDescription) -> ImagesToJudge:
    """Return the images to choose a run's light model by, and those to report.

    A run with `valid-fraction` has validation images, which no step has trained on, though the first's best round may
    have been chosen by them. For another, half of the test
    images, drawn by its seed, take their part, and the other half is reported.
    """
    test_N, valid_N = description.samples_of("test"), split_training(config, description)[1]
    if len(valid_N):
        about = f"the run's {counted(len(valid_N), 'validation image')}; the test images are only reported"
        return ImagesToJudge(choose_N=valid_N, report_N=test_N, about=about)
    random = np.random.Generator(np.random.PCG64(derive(config.training.seed, "lightening")))
    order_N = random.permutation(test_N)
    half = -(-len(order_N) // 2)
    about = (
        f"{half} of {counted(len(test_N), 'test image')}, since the run has no valid-fraction; the others are only "
        "reported"
    )
    return ImagesToJudge(choose_N=np.sort(order_N[:half]), report_N=np.sort(order_N[half:]), about=about)


def images_to_calibrate(config: RunConfig, description: StoreSetDescription) -> NDArray[np.int64]:
    """Return up to 256 training images that int8 is calibrated on, ascending, int64; none that models are chosen by."""
    trained_N = split_training(config, description)[0]
    return np.sort(np.random.default_rng(0).permutation(trained_N)[:_CALIBRATION_IMAGES])


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
        One batch, uint8; its first image alone gives the latency. For an Upper: patches, `per_image` of each image.
    clock : callable, optional
        Returns seconds; by default the process's or the wall's, by the number of threads.
    names : tuple[str, str]
        Of the artefact's input and output.
    per_image : int
        Patches of an image, for an Upper.
    """
    clock = clock or _clock(session)
    pixels, (given, wanted) = _pixels(images_BCHW), names
    batch_s, batch_spread = _timed(lambda: session.run([wanted], {given: pixels}), clock)
    one_s, one_spread = _timed(lambda: session.run([wanted], {given: pixels[:per_image]}), clock)
    return Speed(
        images_per_s=len(pixels) / per_image / batch_s,
        latency_ms=one_s * 1000,
        images_per_s_spread=batch_spread,
        latency_spread=one_spread,
    )


def together(speeds: Sequence[Speed]) -> Speed:
    """Return one speed of several measurements of the same artefact: their medians, and half their range as spread."""

    def middle(values: list[float], spreads: list[float]) -> tuple[float, float]:
        median = statistics.median(values)
        between = (max(values) - min(values)) / 2 / median if median else 0.0
        return median, max(between, statistics.median(spreads))

    rate, rate_spread = middle([s.images_per_s for s in speeds], [s.images_per_s_spread for s in speeds])
    latency, latency_spread = middle([s.latency_ms for s in speeds], [s.latency_spread for s in speeds])
    return Speed(images_per_s=rate, latency_ms=latency, images_per_s_spread=rate_spread, latency_spread=latency_spread)


def _clock(session: onnxruntime.InferenceSession) -> Callable[[], float]:
    # With one thread the runtime computes in the caller's own.
    alone = session.get_session_options().intra_op_num_threads == 1
    return time.thread_time if alone else time.perf_counter


def _timed(run: Callable[[], object], clock: Callable[[], float]) -> tuple[float, float]:
    """Return the median seconds of a run, and their spread as in `Speed`."""
    for _ in range(_WARM_UP_RUNS):
        run()
    times: list[float] = []
    while len(times) < _LEAST_RUNS or sum(times) < _LEAST_S:
        started = clock()
        run()
        times.append(clock() - started)
    median = statistics.median(times)
    parts = [float(np.median(part)) for part in np.array_split(times, _PARTS)]
    return median, (max(parts) - min(parts)) / 2 / median if median else 0.0


def _pixels(images_BCHW: torch.Tensor) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = (images_BCHW.float() / 255).contiguous().numpy()
    return pixels
