"""The loop: judge a degree of lightening, lighten more or less, until satisfied or proved impossible within the bounds.

Degrees are whole numbers, from 0 (only quantised) to the most pruned. The proof rests on one assumption: that more
lightening makes a network faster, smaller and less accurate. Where a measurement is noisy, it holds within that noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from psl_flower.errors import ConfigError


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one artefact."""

    accuracy: float  #: Accuracy of the artefact itself on the images that models are chosen by, 0..1.
    test_accuracy: float | None = None  #: Accuracy on the images that are only reported; None without such images.
    images_per_s: float  #: Median, in batches.
    latency_ms: float  #: Median, of one image alone.
    #: Spreads as in `psl_flower.lightening.judging.Speed`.
    images_per_s_spread: float = 0.0
    latency_spread: float = 0.0
    num_bytes: int  #: Size of the file on disk.
    #: Size of the network; multiply-adds for one image.
    parameters: int
    multiply_adds: int


class Verdict(StrEnum):
    """What follows from one judgement."""

    SATISFIED = "satisfied"
    LIGHTEN_LESS = "lighten less"
    LIGHTEN_MORE = "lighten more"
    CONTRADICTION = "lighten less and more"


class LoopEnd(StrEnum):
    """Why the loop ended."""

    SATISFIED = "satisfied"
    NEVER_ACCURATE = "never accurate enough"
    NEVER_FAST = "never light enough"
    OSCILLATES = "oscillates"
    CONTRADICTION = "neither at one degree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """When a model is good enough: above the accuracy, on the right side of the speed's threshold, and small enough."""

    min_accuracy: float  #: Accuracy at or below it is too low; 0..1, 1 excluded.
    min_speed: float | None = None  #: Images per second; a speed at or below it is too low.
    #: Milliseconds for one image; a latency at or above it is too long. Exactly one of the two is given.
    max_latency_ms: float | None = None
    max_bytes: float | None = None  #: Limit on the file's size; None: no limit.
    #: The condition of accuracy in words; empty: made from `min_accuracy`.
    accuracy_text: str = field(default="", compare=False)

    def verdict(self, judged: Judgement) -> Verdict:
        """Return the verdict on a judgement. NaN satisfies no condition."""
        accurate, light = judged.accuracy > self.min_accuracy, self._fast(judged) and self._small(judged)
        if accurate and light:
            return Verdict.SATISFIED
        if accurate:
            return Verdict.LIGHTEN_MORE
        return Verdict.LIGHTEN_LESS if light else Verdict.CONTRADICTION

    def speed_share(self, judged: Judgement) -> float:
        """Return the speed as a share of the required speed; fast enough is above 1."""
        if self.min_speed is not None:
            return judged.images_per_s / self.min_speed
        assert self.max_latency_ms is not None
        return self.max_latency_ms / judged.latency_ms

    def speed_spread(self, judged: Judgement) -> float:
        """Return the spread of the speed that counts, as a share of it."""
        return judged.latency_spread if self.min_speed is None else judged.images_per_s_spread

    def shortfall(self, judged: Judgement) -> float:
        """Return the distance of a judgement from the conditions: the sum of the lacking shares; 0 if all are met."""
        lacking = max(0.0, 1 - judged.accuracy / self.min_accuracy) if self.min_accuracy else 0.0
        too_large = 0.0 if self.max_bytes is None else max(0.0, 1 - self.max_bytes / judged.num_bytes)
        return lacking + max(0.0, 1 - self.speed_share(judged)) + too_large

    def missed(self, judged: Judgement) -> dict[str, str]:
        """Return the amount by which each condition is missed, by its name: "accuracy", "speed" or "size"."""
        found = {}
        if not judged.accuracy > self.min_accuracy:
            found["accuracy"] = f"{100 * max(0.0, self.min_accuracy - judged.accuracy):.2f} points"
        if not self._fast(judged):
            noise = self.speed_spread(judged) > 1 - self.speed_share(judged)
            found["speed"] = self._slower(judged) + (" (less than the measured spread)" if noise else "")
        if not self._small(judged):
            assert self.max_bytes is not None
            found["size"] = f"{(judged.num_bytes - self.max_bytes) / 1e6:.2f} MB"
        return found

    def text(self) -> str:
        """Return the conditions as words, in absolute numbers."""
        if self.min_speed is not None:
            speed = f"more than {self.min_speed:,.6g} images/s"
        else:
            speed = f"less than {self.max_latency_ms:g} ms for an image"
        size = "" if self.max_bytes is None else f", at most {self.max_bytes / 1e6:g} MB"
        return f"{self.accuracy_text or f'accuracy above {self.min_accuracy:.2%}'}, {speed}{size}"

    def _fast(self, judged: Judgement) -> bool:
        return self.speed_share(judged) > 1

    def _small(self, judged: Judgement) -> bool:
        return self.max_bytes is None or judged.num_bytes <= self.max_bytes

    def _slower(self, judged: Judgement) -> str:
        if self.min_speed is not None:
            return f"{self.min_speed - judged.images_per_s:,.0f} images/s"
        assert self.max_latency_ms is not None
        return f"{judged.latency_ms - self.max_latency_ms:.2f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One degree that was judged."""

    degree: int  #: Degree of lightening.
    judged: Judgement
    verdict: Verdict
    most_left: int = 0  #: Judgements that may have to follow.


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the loop ended."""

    end: LoopEnd  #: Why it ended.
    attempts: tuple[Attempt, ...]
    best: Attempt  #: The one that satisfies, or the one that lacks least.
    reason: str  #: Condition that fails, and where; for a person.


def search(
    judge: Callable[[int], Judgement],
    conditions: Conditions,
    max_degree: int,
    *,
    start: int,
    known: Mapping[int, Judgement] | None = None,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> Outcome:
    """Find a degree that satisfies the conditions, by bisection: at most 2 + log2(max_degree + 1) judgements.

    Parameters
    ----------
    judge : callable
        Returns the measurements at a degree, 0..max_degree.
    conditions : Conditions
        To be met.
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
        verdict = conditions.verdict(judged)
        if verdict in (Verdict.CONTRADICTION, Verdict.LIGHTEN_MORE):
            too_slow = degree
        if verdict in (Verdict.CONTRADICTION, Verdict.LIGHTEN_LESS):
            too_wrong = degree
        left = 0 if verdict is Verdict.SATISFIED else most_judgements(too_wrong - too_slow - 1)
        attempt = Attempt(degree=degree, judged=judged, verdict=verdict, most_left=left)
        attempts.append(attempt)
        on_attempt(attempt)
        if verdict is Verdict.SATISFIED:
            return Outcome(end=LoopEnd.SATISFIED, attempts=tuple(attempts), best=attempt, reason="all conditions hold")
        degree = (too_slow + too_wrong) // 2
    end, reason = _why(too_slow, too_wrong, max_degree, conditions, attempts)
    best = min(attempts, key=lambda attempt: conditions.shortfall(attempt.judged))
    return Outcome(end=end, attempts=tuple(attempts), best=best, reason=reason)


def most_judgements(num_degrees: int) -> int:
    """Return the most judgements that a bisection of `num_degrees` degrees takes."""
    return max(0, num_degrees).bit_length()


def _why(
    too_slow: int, too_wrong: int, max_degree: int, conditions: Conditions, attempts: Sequence[Attempt]
) -> tuple[LoopEnd, str]:
    heavy = _heavy(next((attempt for attempt in attempts if attempt.degree == too_slow), None), conditions)
    if too_slow == too_wrong:
        return LoopEnd.CONTRADICTION, (
            f"degree {too_slow} fails the conditions of accuracy and of {heavy}: lighter ones are less accurate still, "
            "heavier ones slower and larger still"
        )
    if too_slow == max_degree:
        return LoopEnd.NEVER_FAST, f"the condition of {heavy} fails even at degree {max_degree}, the most lightened"
    if too_wrong == 0:
        return LoopEnd.NEVER_ACCURATE, "the condition of accuracy fails even at degree 0, the least lightened"
    return LoopEnd.OSCILLATES, (
        f"degree {too_slow} is accurate and fails the condition of {heavy}, degree {too_wrong} is light and not "
        "accurate enough, and no degree lies between them"
    )


def _heavy(attempt: Attempt | None, conditions: Conditions) -> str:
    missed = () if attempt is None else conditions.missed(attempt.judged)
    return " and of ".join(name for name in missed if name != "accuracy")
