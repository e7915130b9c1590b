"""Chooses the light model among all that were judged: one that meets the conditions, and that no other beats.

Accuracy is that on the images by which models are chosen. Speed is noisy: two speeds whose measured spreads overlap
count as equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psl_flower.lightening.names import title_of
from psl_flower.lightening.search import Conditions, Judgement, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The model that was chosen, and why."""

    what: str  #: Its name; see `psl_flower.lightening.names`.
    why: str  #: Reason in words, for a person.
    #: Maps each model that meets the conditions but is beaten in everything to one that beats it.
    beaten_by: Mapping[str, str]


def faster(a: Judgement, b: Judgement, conditions: Conditions) -> bool:
    """Return True if the first is faster than the second, by more than the measured spreads."""
    slowest_a = conditions.speed_share(a) * (1 - conditions.speed_spread(a))
    return slowest_a > conditions.speed_share(b) * (1 + conditions.speed_spread(b))


def beats(a: Judgement, b: Judgement, conditions: Conditions) -> bool:
    """Return True if the first is better in accuracy, speed or size than the second, and worse in none."""
    if a.accuracy < b.accuracy or a.num_bytes > b.num_bytes or faster(b, a, conditions):
        return False
    return a.accuracy > b.accuracy or a.num_bytes < b.num_bytes or faster(a, b, conditions)


def choose(at_hand: Mapping[str, Judgement], conditions: Conditions) -> Choice | None:
    """Return the choice among the existing models, by their names; None if none meets the conditions.

    Of those that meet the conditions and are beaten by no other, the fastest; of those as fast as it, within the
    measured spread, the most accurate, and of equally accurate ones the smallest.
    """
    good = {what: judged for what, judged in at_hand.items() if conditions.verdict(judged) is Verdict.SATISFIED}
    if not good:
        return None
    beaten_by = {what: by for what in good if (by := _one_that_beats(what, good, conditions))}
    front = {what: judged for what, judged in good.items() if what not in beaten_by}
    top = max(front.values(), key=conditions.speed_share)
    as_fast = [what for what, judged in front.items() if not faster(top, judged, conditions)]
    chosen = max(as_fast, key=lambda what: (good[what].accuracy, -good[what].num_bytes))
    return Choice(what=chosen, why=_why(chosen, as_fast, front, good, conditions), beaten_by=beaten_by)


def asked_for(what: str, at_hand: Mapping[str, Judgement], conditions: Conditions) -> Choice:
    """Return the choice of the loop's own result; if a model beats it, the reason says so."""
    by = _one_that_beats(what, at_hand, conditions)
    why = "the loop's own result, as method=loop asks"
    if by:
        why += f"; {title_of(by)} beats it in everything, which method=auto would choose from"
    return Choice(what=what, why=why, beaten_by={what: by} if by else {})


def verdict_line(what: str, judged: Judgement, conditions: Conditions) -> str:
    """Return one line with a model's measurements and its verdict."""
    return (
        f"{title_of(what)}: accuracy {judged.accuracy:.2%}, {judged.images_per_s:,.0f} images/s, "
        f"{judged.latency_ms:.2f} ms, {judged.num_bytes / 1e6:.2f} MB: {standing(judged, conditions)}"
    )


def standing(judged: Judgement, conditions: Conditions) -> str:
    """Return "met", or by how much each condition is missed."""
    missed = conditions.missed(judged)
    return f"missed {', '.join(f'{name} by {much}' for name, much in missed.items())}" if missed else "met"


def _one_that_beats(what: str, among: Mapping[str, Judgement], conditions: Conditions) -> str:
    """Return the fastest that beats a model; empty if none does."""
    better = [name for name, judged in among.items() if beats(judged, among[what], conditions)]
    return max(better, key=lambda name: conditions.speed_share(among[name]), default="")


def _why(
    chosen: str,
    as_fast: Sequence[str],
    front: Mapping[str, Judgement],
    good: Mapping[str, Judgement],
    conditions: Conditions,
) -> str:
    if len(good) == 1:
        return "the only model at hand that meets all goals"
    if len(front) == 1:
        return f"of {len(good)} models that meet all goals, none beats it in accuracy, speed or size"
    which = "the fastest"
    if len(as_fast) > 1:
        which = "the most accurate of those as fast as the fastest, within the measured spread,"
    words = f"{which} of the {len(front)} models that meet all goals and that no other beats in everything"
    others = "; ".join(_beside(what, front[what], good[chosen], conditions) for what in front if what != chosen)
    return f"{words}; beside it: {others}"


def _beside(what: str, other: Judgement, chosen: Judgement, conditions: Conditions) -> str:
    """Return the differences of another model to the one chosen."""
    points = 100 * (other.accuracy - chosen.accuracy)
    speed = conditions.speed_share(other) / conditions.speed_share(chosen)
    size = other.num_bytes / chosen.num_bytes
    return f"{title_of(what)} ({points:+.2f} points, {speed:.2f} times the speed, {size:.2f} times the size)"
