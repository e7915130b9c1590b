"""The effort of an audit: its number of threads, its estimated time, and its progress.

Decoders are small: on a machine whose cores are busy, several threads that wait for each other can be many times
slower than one. So a few steps are timed with one thread and with all, by turns, and all are taken where they are
clearly faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from psl_flower.leakage.attack import BATCH, Pairs, divided, train_decoder
from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.known_weights import MOST_VALIDATION, STEPS
from psl_flower.models import PatchSplitNet
from psl_flower.patches.description import StoreSetDescription
from psl_flower.system.devices import torch_threads
from psl_flower.text import counted, duration

# Images and passes of a timing; as many passes as steps.
_TIMED_IMAGES, _TIMED_STEPS = BATCH + 16, 3
# Timings of each number of threads; the least counts, since other load can only slow them down.
_TURNS = 2
# Share of the time of one thread below which several are taken: such short timings vary.
_CLEARLY = 0.8
# Trainings of decoders in an audit of one look: on codes, on those of substitutes, on logits and on classes.
_OF_ONE = 4 * len(DECODERS)
# With several looks each decoder begins twice, and reads more.
_STARTS, _JOINED = 2 * len(DECODERS), 2.0


class Effort(NamedTuple):
    """A forecast; seconds are rough, and as many as an attack may take at most."""

    threads: int  #: Threads to compute with.
    joined: bool  #: Whether looks are joined; the time of training the run again for them is not known here.
    decoder: float  #: Seconds of a decoder's training, of one look.
    substitutes: float  #: Seconds of training substitutes for the Uppers.
    mending: float  #: Seconds of mending images, done once, and once more with several looks.

    @property
    def seconds(self) -> float:
        """Of all attacks."""
        one = _OF_ONE * self.decoder + self.substitutes + self.mending
        return one + (_STARTS * _JOINED * self.decoder + self.mending if self.joined else 0.0)

    def of(self, what: str) -> float:
        """Return the seconds of an attack, by its title in `Attacks.on_progress`."""
        if what.startswith("mending"):
            return self.mending
        if what.startswith("substitute"):
            return self.substitutes
        return (_JOINED if " looks of " in what else 1.0) * self.decoder

    def line(self, settings: AuditSettings, num_auxiliary: int) -> str:
        """Return the forecast in words."""
        return (
            f"attacks by decoders of up to {counted(settings.epochs, 'pass')} over {num_auxiliary} images: about "
            f"{duration(self.seconds)} at most, with {counted(self.threads, 'thread')}"
            + ("; the run is trained again first" if self.joined else "")
        )


def forecast(
    net: PatchSplitNet,
    description: StoreSetDescription,
    settings: AuditSettings,
    num_auxiliary: int,
    num_victims: int,
    *,
    joined: bool,
) -> Effort:
    """Time a few steps of the decoders and of the Uppers; `joined` is whether the audit joins looks."""
    pixels_NCHW = torch.rand(_TIMED_IMAGES, description.channels, *description.image_size)
    with torch.no_grad():
        P, C, h, w = net.smash(torch.zeros(1, *pixels_NCHW.shape[1:])).shape[1:]
    pairs = Pairs(torch.rand(_TIMED_IMAGES, P, C, h, w), pixels_NCHW)
    sizes = Sizes(grid=description.grid(), smashed=(C, h, w), channels=description.channels)
    most = torch.get_num_threads()
    # Thrown away: the first in a process includes torch's warm-up, which can take ten times as long as the work.
    _timed(1, net, sizes, pairs)
    turns = [{threads: _timed(threads, net, sizes, pairs) for threads in sorted({1, most})} for _ in range(_TURNS)]
    timed = {threads: tuple(map(min, zip(*(turn[threads] for turn in turns), strict=True))) for threads in turns[0]}
    threads = most if sum(timed[most]) < _CLEARLY * sum(timed[1]) else 1
    decoder_s, uppers_s = timed[threads]
    none = torch.empty(num_auxiliary, 0)
    training, held_back = (len(part.images_NCHW) for part in divided(Pairs(none, none)))
    steps = settings.epochs * max(1, training // BATCH)
    mended = num_victims + min(held_back, MOST_VALIDATION)
    return Effort(
        threads=threads, joined=joined, decoder=steps * decoder_s, substitutes=steps * uppers_s,
        mending=STEPS * mended / BATCH * uppers_s,
    )  # fmt: skip


@dataclass(slots=True)
class Course:
    """How far an audit is, by its attacks so far, and an estimate of the time left.

    `show` is called with (what, done, total, details), done and total in seconds of the forecast.
    """

    show: Callable[[str, float, float, str], None]
    effort: Effort
    _began: float = 0.0
    _done: float = 0.0  # of the attacks before
    _what: str = ""
    _at: float = 0.0  # share of the attack

    @property
    def over(self) -> float:
        """Seconds of the forecast that are over."""
        return self._done + (self._at * self.effort.of(self._what) if self._what else 0.0)

    def note(self, what: str, done: int, total: int) -> None:
        """Record that `done` passes of an attack are over, of `total` at most; see `Attacks.on_progress`."""
        now, at = time.monotonic(), done / max(1, total)
        # The same title again, from the beginning or after its end, is of another training.
        if what != self._what or at < self._at or self._at >= 1:
            self._began = self._began or now
            self._done += self.effort.of(self._what) if self._what else 0.0
            self._what = what
        self._at = at
        over, in_all = self.over, self.effort.seconds
        # The first steps' time is unknown: they are over when this is first called.
        left = (now - self._began) * max(0.0, in_all / over - 1) if over and now > self._began else 0.0
        details = f"{done} of {total} at most" + (f", about {duration(left)} left for all attacks" if left else "")
        self.show(what, min(over, in_all), in_all, details)


def _timed(threads: int, net: PatchSplitNet, sizes: Sizes, pairs: Pairs) -> tuple[float, float]:
    """Return the seconds of a step of a decoder, the mean of all kinds, and of the Uppers forward and backward."""
    with torch_threads(threads):
        began = time.perf_counter()
        for name in DECODERS:
            train_decoder(name, sizes, pairs, epochs=_TIMED_STEPS, seed=0)
        decoders, began = time.perf_counter() - began, time.perf_counter()
        images_BCHW = pairs.images_NCHW[:BATCH].clone().requires_grad_(True)
        with torch.enable_grad():
            torch.autograd.grad(net.smash(images_BCHW).sum(), [images_BCHW])
        return decoders / _TIMED_STEPS / len(DECODERS), time.perf_counter() - began
