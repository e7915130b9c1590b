"""The loop: judge a degree of lightening, lighten more or less, until satisfied or proved impossible within the bounds.

Degrees are whole numbers, from 0 (only quantised) to the most pruned. The proof rests on one assumption: that more
lightening makes a network faster and less accurate. Where a measurement is noisy, it holds within that noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from psl_flower.errors import ConfigError


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one artefact.

    Attributes
    ----------
    accuracy : float
        Of the artefact itself, 0..1.
    images_per_s : float
        Median, in batches.
    latency_ms : float
        Median, of one image alone.
    num_bytes : int
        Of the file on disk.
    parameters, multiply_adds : int
        Of the network; multiply-adds for one image.
    """

    accuracy: float
    images_per_s: float
    latency_ms: float
    num_bytes: int
    parameters: int
    multiply_adds: int


class Verdict(StrEnum):
    """What follows from one judgement."""

    SATISFIED = "satisfied"
    LIGHTEN_LESS = "lighten less"
    LIGHTEN_MORE = "lighten more"
    CONTRADICTION = "lighten less and more"


class End(StrEnum):
    """Why the loop ended."""

    SATISFIED = "satisfied"
    NEVER_ACCURATE = "never accurate enough"
    NEVER_FAST = "never fast enough"
    OSCILLATES = "oscillates"
    CONTRADICTION = "neither at one degree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """When the third model is good enough: above the accuracy AND on the right side of the speed's threshold.

    Attributes
    ----------
    min_accuracy : float
        Accuracy at or below it is too low; 0..1, 1 excluded.
    min_speed : float or None
        Images per second; a speed at or below it is too low.
    max_latency_ms : float or None
        Of one image; a latency at or above it is too long. Exactly one of the two is given.
    """

    min_accuracy: float
    min_speed: float | None = None
    max_latency_ms: float | None = None

    def verdict(self, judged: Judged) -> Verdict:
        """Return the verdict on a judgement. NaN satisfies no condition."""
        accurate, fast = judged.accuracy > self.min_accuracy, self.speed_share(judged) > 1
        if accurate and fast:
            return Verdict.SATISFIED
        if accurate:
            return Verdict.LIGHTEN_MORE
        return Verdict.LIGHTEN_LESS if fast else Verdict.CONTRADICTION

    def speed_share(self, judged: Judged) -> float:
        """Return the speed as a share of what is asked for; fast enough is above 1."""
        if self.min_speed is not None:
            return judged.images_per_s / self.min_speed
        assert self.max_latency_ms is not None
        return self.max_latency_ms / judged.latency_ms

    def shortfall(self, judged: Judged) -> float:
        """Return the distance of a judgement from the conditions: the sum of the lacking shares; 0 if all are met."""
        lacking = max(0.0, 1 - judged.accuracy / self.min_accuracy) if self.min_accuracy else 0.0
        return lacking + max(0.0, 1 - self.speed_share(judged))

    def text(self) -> str:
        """Return the conditions as words."""
        if self.min_speed is not None:
            speed = f"more than {self.min_speed:g} images/s"
        else:
            speed = f"less than {self.max_latency_ms:g} ms for an image"
        return f"accuracy above {self.min_accuracy:.4g}, {speed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One degree that was judged."""

    degree: int
    judged: Judged
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the loop ended.

    Attributes
    ----------
    end : End
        Why.
    attempts : tuple of Attempt
        In their order.
    best : Attempt
        The one that satisfies, or the one that lacks least.
    reason : str
        Which condition fails, and where; for a person.
    """

    end: End
    attempts: tuple[Attempt, ...]
    best: Attempt
    reason: str


def search(
    judge: Callable[[int], Judged],
    conditions: Conditions,
    max_degree: int,
    *,
    start: int,
    known: Mapping[int, Judged] | None = None,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> Outcome:
    """Find a degree that satisfies the conditions, by bisection: at most 2 + log2(max_degree + 1) judgements.

    Parameters
    ----------
    judge : callable
        Returns what is measured at a degree, 0..max_degree.
    conditions : Conditions
        What is asked for.
    max_degree : int
        The most lightened, 0 or more.
    start : int
        The first degree to judge, 0..max_degree; a good guess saves judgements.
    known : mapping, optional
        Judgements made earlier, by degree: these degrees are not judged again.
    on_attempt : callable
        Called with every attempt, known ones included.

    Raises
    ------
    ConfigError
        If `start` is not a degree.
    """
    if not 0 <= start <= max_degree:
        raise ConfigError(f"start: expected a degree of 0 to {max_degree}, got {start}")
    attempts: list[Attempt] = []
    too_slow, too_wrong = -1, max_degree + 1  # degrees up to the one and from the other on are ruled out
    degree = start
    while too_wrong - too_slow > 1:
        judged = (known or {}).get(degree) or judge(degree)
        attempt = Attempt(degree=degree, judged=judged, verdict=conditions.verdict(judged))
        attempts.append(attempt)
        on_attempt(attempt)
        match attempt.verdict:
            case Verdict.SATISFIED:
                return Outcome(end=End.SATISFIED, attempts=tuple(attempts), best=attempt, reason="both conditions hold")
            case Verdict.CONTRADICTION:
                too_slow = too_wrong = degree
            case Verdict.LIGHTEN_MORE:
                too_slow = degree
            case Verdict.LIGHTEN_LESS:
                too_wrong = degree
        degree = (too_slow + too_wrong) // 2
    end, reason = _why(too_slow, too_wrong, max_degree)
    best = min(attempts, key=lambda attempt: conditions.shortfall(attempt.judged))
    return Outcome(end=end, attempts=tuple(attempts), best=best, reason=reason)


def _why(too_slow: int, too_wrong: int, max_degree: int) -> tuple[End, str]:
    if too_slow == too_wrong:
        return End.CONTRADICTION, (
            f"degree {too_slow} fails both conditions: lighter ones are less accurate still, heavier ones slower still"
        )
    if too_slow == max_degree:
        return End.NEVER_FAST, f"the condition of speed fails even at degree {max_degree}, the most lightened"
    if too_wrong == 0:
        return End.NEVER_ACCURATE, "the condition of accuracy fails even at degree 0, the least lightened"
    return End.OSCILLATES, (
        f"degree {too_slow} is accurate and too slow, degree {too_wrong} fast and not accurate enough, "
        "and no degree lies between them"
    )
