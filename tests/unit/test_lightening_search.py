"""The loop of lightening with a judge of known curves: every verdict, every end, and judgements made before."""

import itertools
import math

import msgspec
import pytest

from psl_flower.errors import ConfigError
from psl_flower.lightening.search import Conditions, Judgement, LoopEnd, Verdict, search
from psl_flower.lightening.settings import Goals, LighteningSettings

LAST = 12


def judged(accuracy=0.9, images_per_s=1000.0, latency_ms=1.0):
    return Judgement(
        accuracy=accuracy, images_per_s=images_per_s, latency_ms=latency_ms, num_bytes=1, parameters=1, multiply_adds=1
    )


class FakeJudge:
    """Faster and less accurate with every degree; remembers what it was asked."""

    def __init__(self, accuracy=lambda k: 0.99 - 0.01 * k, speed=lambda k: 100.0 * (k + 1)):
        self.asked = []
        self._accuracy, self._speed = accuracy, speed

    def __call__(self, degree):
        self.asked.append(degree)
        speed = self._speed(degree)
        return judged(self._accuracy(degree), speed, 1000 / speed)


VERDICTS = [
    (0.91, 1001.0, Verdict.SATISFIED),
    (0.91, 1000.0, Verdict.LIGHTEN_MORE),  # at its threshold
    (0.91, 10.0, Verdict.LIGHTEN_MORE),
    (0.90, 1001.0, Verdict.LIGHTEN_LESS),  # at its threshold
    (0.10, 1001.0, Verdict.LIGHTEN_LESS),
    (0.90, 1000.0, Verdict.CONTRADICTION),
    (math.nan, 1001.0, Verdict.LIGHTEN_LESS),
    (0.91, math.nan, Verdict.LIGHTEN_MORE),
]


@pytest.mark.parametrize(("accuracy", "speed", "expected"), VERDICTS)
def test_every_verdict_by_speed_and_by_latency(accuracy, speed, expected):
    assert VERDICTS
    by_speed = Conditions(min_accuracy=0.9, min_speed=1000.0)
    assert by_speed.verdict(judged(accuracy, speed, 99.0)) is expected
    by_latency = Conditions(min_accuracy=0.9, max_latency_ms=1.0)
    assert by_latency.verdict(judged(accuracy, 1.0, 1000 / speed)) is expected


@pytest.mark.parametrize("start", range(LAST + 1))
def test_a_degree_that_satisfies_is_found_from_anywhere(start):
    """Degrees 5 and 6 alone satisfy: above 0.925, and above 590 images/s."""
    judge = FakeJudge()
    seen = []
    outcome = search(judge, Conditions(min_accuracy=0.925, min_speed=590.0), LAST, start=start, on_attempt=seen.append)
    assert outcome.end is LoopEnd.SATISFIED
    assert outcome.best.degree in (5, 6)
    assert outcome.best is outcome.attempts[-1]
    assert [attempt.degree for attempt in outcome.attempts] == judge.asked == [attempt.degree for attempt in seen]
    assert len(judge.asked) <= 5


def test_too_large_is_lightened_more_and_the_reason_names_it():
    """Files of 13 MB at degree 0 and of 1 at the last; accuracy falls below 0.945 from degree 5 on."""

    class Sized(FakeJudge):
        def __call__(self, degree):
            return msgspec.structs.replace(super().__call__(degree), num_bytes=(LAST + 1 - degree) * 1_000_000)

    asked = Conditions(min_accuracy=0.945, min_speed=1.0, max_bytes=9e6)
    assert search(Sized(), asked, LAST, start=0).best.degree == 4
    found = search(Sized(), Conditions(min_accuracy=0.945, min_speed=1.0, max_bytes=8.5e6), LAST, start=0)
    assert found.end is LoopEnd.OSCILLATES
    assert "degree 4 is accurate and fails the condition of size, degree 5 is light" in found.reason
    found = search(Sized(), Conditions(min_accuracy=0.1, min_speed=1e9, max_bytes=1e5), LAST, start=0)
    assert "the condition of speed and of size fails even at degree 12" in found.reason


@pytest.mark.parametrize("start", [0, 6, LAST])
def test_how_many_judgements_may_be_left(start):
    seen = []
    asked = Conditions(min_accuracy=0.945, min_speed=500.0)
    search(FakeJudge(), asked, LAST, start=start, on_attempt=seen.append)
    for number, attempt in enumerate(seen, start=1):
        assert attempt.most_left >= len(seen) - number
    assert seen[-1].most_left == 0


def test_the_first_guess_may_be_right_at_once():
    judge = FakeJudge()
    assert search(judge, Conditions(min_accuracy=0.5, min_speed=50.0), LAST, start=3).best.degree == 3
    assert judge.asked == [3]


IMPOSSIBLE = [
    # (conditions, end, degrees that must have been judged for the proof, words of the reason)
    (Conditions(min_accuracy=0.99, min_speed=50.0), LoopEnd.NEVER_ACCURATE, {0}, "accuracy fails even at degree 0"),
    (Conditions(min_accuracy=0.5, min_speed=1300.0), LoopEnd.NEVER_FAST, {LAST}, "speed fails even at degree 12"),
    (
        Conditions(min_accuracy=0.945, min_speed=500.0),
        LoopEnd.OSCILLATES,
        {4, 5},
        "degree 4 is accurate and fails the condition of speed",
    ),
    (
        Conditions(min_accuracy=0.925, min_speed=900.0),
        LoopEnd.CONTRADICTION,
        set(),
        "fails the conditions of accuracy and of speed",
    ),
]


@pytest.mark.parametrize(("conditions", "end", "proof", "words"), IMPOSSIBLE)
@pytest.mark.parametrize("start", [0, 6, LAST])
def test_impossible_conditions_are_proved_so(conditions, end, proof, words, start):
    assert IMPOSSIBLE
    judge = FakeJudge()
    outcome = search(judge, conditions, LAST, start=start)
    assert outcome.end is end
    assert words in outcome.reason
    assert proof <= set(judge.asked)
    assert len(judge.asked) == len(set(judge.asked)) <= 2 + math.log2(LAST + 1)
    # None of the degrees satisfies, indeed.
    assert all(conditions.verdict(judge(k)) is not Verdict.SATISFIED for k in range(LAST + 1))


def test_what_is_found_agrees_with_trying_every_degree():
    """For every pair of thresholds: satisfied exactly where some degree satisfies."""
    for accuracy, speed, start in itertools.product(
        [0.865 + 0.01 * n for n in range(14)], range(50, 1400, 100), (0, 7)
    ):
        conditions = Conditions(min_accuracy=accuracy, min_speed=float(speed))
        outcome = search(FakeJudge(), conditions, LAST, start=start)
        possible = any(conditions.verdict(FakeJudge()(k)) is Verdict.SATISFIED for k in range(LAST + 1))
        assert (outcome.end is LoopEnd.SATISFIED) == possible


def test_the_best_found_lacks_least():
    # Degree 6 lacks 2 of 920 images/s, degree 12 a tenth of the accuracy.
    conditions = Conditions(min_accuracy=0.949, min_speed=501.0)
    outcome = search(FakeJudge(), conditions, LAST, start=6)
    assert outcome.end is LoopEnd.OSCILLATES
    assert outcome.best.degree == 4
    assert outcome.best.degree != outcome.attempts[0].degree
    assert conditions.shortfall(outcome.best.judged) == pytest.approx(1 / 501)


def test_noise_that_turns_the_verdict_round_still_ends():
    """Verdicts go more, less, more, less: the loop narrows down instead of going to and fro for ever."""
    answers = iter([(0.9, 1.0), (0.1, 99.0)] * 20)
    judge = FakeJudge()

    def noisy(degree):
        judge.asked.append(degree)
        accuracy, speed = next(answers)
        return judged(accuracy, speed, 1.0)

    outcome = search(noisy, Conditions(min_accuracy=0.5, min_speed=50.0), 1000, start=500)
    assert outcome.end is LoopEnd.OSCILLATES
    assert len(judge.asked) <= 12
    assert {Verdict.LIGHTEN_LESS, Verdict.LIGHTEN_MORE} == {attempt.verdict for attempt in outcome.attempts}


@pytest.mark.parametrize("done", range(5))
def test_interrupted_in_the_middle_it_goes_on_without_judging_again(done):
    """Stopped after so many judgements, the second call makes the rest alone and comes to the same end."""
    conditions = Conditions(min_accuracy=0.945, min_speed=500.0)
    whole = FakeJudge()
    expected = search(whole, conditions, LAST, start=10)
    assert len(whole.asked) >= 4

    known = {}
    judge = FakeJudge()

    def until_interrupted(degree):
        if len(judge.asked) == done:
            raise KeyboardInterrupt
        return judge(degree)

    def remember(attempt):
        known[attempt.degree] = attempt.judged

    if done < len(whole.asked):
        with pytest.raises(KeyboardInterrupt):
            search(until_interrupted, conditions, LAST, start=10, on_attempt=remember)
    else:
        search(judge, conditions, LAST, start=10, on_attempt=remember)
    rest = FakeJudge()
    assert search(rest, conditions, LAST, start=10, known=known) == expected
    assert judge.asked + rest.asked == whole.asked


def test_one_degree_alone():
    assert search(FakeJudge(), Conditions(min_accuracy=0.9, min_speed=1.0), 0, start=0).end is LoopEnd.SATISFIED
    assert search(FakeJudge(), Conditions(min_accuracy=0.9, min_speed=1e6), 0, start=0).end is LoopEnd.NEVER_FAST
    with pytest.raises(ConfigError, match="degree of 0 to 3"):
        search(FakeJudge(), Conditions(min_accuracy=0.9, min_speed=1.0), 3, start=4)


REFUSED = [
    ({"min_accuracy": 0.9}, "one condition of speed"),
    ({"min_accuracy": 0.9, "min_speed": 0.0}, "min-speed: expected a number above 0, got 0"),
    ({"min_accuracy": 0.9, "min_speed": 1.0, "max_latency_ms": 1.0}, "one condition of speed"),
    ({"min_accuracy": 0.9, "min_speed": -1.0}, "min-speed: expected a number above 0, got -1"),
    ({"min_accuracy": 0.9, "max_latency_ms": math.nan}, "max-latency-ms: expected a number above 0"),
    ({"min_accuracy": 0.9, "max_latency_ms": math.inf}, "max-latency-ms: expected a number above 0"),
    ({"min_accuracy": 1.0, "min_speed": 1.0}, "min-accuracy: no accuracy exceeds 1"),
    ({"min_accuracy": -0.1, "min_speed": 1.0}, "min-accuracy: expected a number at least 0 and at most 1"),
    ({"min_accuracy": math.nan, "min_speed": 1.0}, "min-accuracy: expected a number at least 0"),
    ({"min_speed": 1.0}, "one condition of accuracy"),
    ({"min_accuracy": 0.9, "max_drop": 0.01, "min_speed": 1.0}, "one condition of accuracy"),
    ({"max_drop": 1.5, "min_speed": 1.0}, "max-drop: expected a number at least 0 and at most 1"),
    ({"max_drop": 0.1, "min_speed": 1.0, "max_mb": 0.0}, "max-mb: expected a number above 0, got 0"),
    ({"max_drop": math.nan, "min_speed": 1.0}, "max-drop: expected a number at least 0 and at most 1"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_conditions_that_cannot_be(given, words):
    assert REFUSED
    with pytest.raises(ConfigError, match=words):
        Goals(**given)


def test_a_drop_is_counted_from_the_first_model_and_may_be_used_up():
    goals = Goals(max_drop=0.01, max_latency_ms=5.0)
    conditions = goals.conditions(0.95)
    assert conditions.verdict(judged(0.95 - 0.01, latency_ms=4.0)) is Verdict.SATISFIED
    assert conditions.verdict(judged(0.9399, latency_ms=4.0)) is Verdict.LIGHTEN_LESS
    assert goals.conditions(0.001).min_accuracy == 0.0


def test_goals_are_told_in_absolute_terms():
    goals = Goals(max_drop=0.005, min_speed=2400.0, max_mb=12.0)
    told = "accuracy at least 97.60% (98.10% less 0.5 points), more than 2,400 images/s, at most 12 MB"
    assert goals.conditions(0.981).text() == told
    goals = Goals(min_accuracy=0.93, max_latency_ms=2.5)
    assert goals.conditions(0.981).text() == "accuracy above 93.00%, less than 2.5 ms for an image"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weight_bits": 4}, "weight-bits: expected a number at least 7 and at most 8, got 4"),
        ({"second_ratio": 1.0}, "second-ratio: expected a number at least 1.1 and at most 16, got 1"),
        ({"second_ratio": 100.0}, "second-ratio: expected a number at least 1.1 and at most 16, got 100"),
        ({"second_ratio": math.nan}, "second-ratio"),
        ({"max_pruned": 1.0}, "max-pruned: expected a number above 0 and below 1"),
        ({"distil_share": 0.0}, "distil-share: with 0 no teacher is learnt from"),
        ({"distil_share": 1.1}, "distil-share: expected a number at least 0 and at most 1"),
        ({"degrees": 0}, "degrees: expected a number at least 1"),
        ({"epochs": -1}, "epochs: expected a number at least 0"),
        ({"threads": 0}, "threads: expected a number at least 1"),
        ({"batch": 0}, "batch: expected a number at least 1"),
    ],
)
def test_settings_that_cannot_be(given, words):
    with pytest.raises(ConfigError, match=words):
        LighteningSettings(**given)
