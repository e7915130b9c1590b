"""Which model is handed over: one that meets the goals, and that none at hand beats; speed decides beyond noise only."""

import itertools
import random

import pytest

from psl_flower.lightening.choosing import asked_for, beats, choose, faster, standing, verdict_line
from psl_flower.lightening.names import degree_name, float_name, title_of
from psl_flower.lightening.search import Conditions, Judgement, Verdict

ASKED = Conditions(min_accuracy=0.97, min_speed=1500.0, max_bytes=20e6)


def model(accuracy=0.98, images_per_s=2000.0, mb=10.0, spread=0.0):
    return Judgement(
        accuracy=accuracy, images_per_s=images_per_s, latency_ms=1000 / images_per_s, num_bytes=round(mb * 1e6),
        parameters=1, multiply_adds=1, images_per_s_spread=spread, latency_spread=spread,
    )  # fmt: skip


# As it was seen: the third was handed over, although the first in int8 was better in everything.
SEEN = {"first-int8": model(0.9806, 2313, 11.8), "degree-004": model(0.9778, 1723, 15.6)}


def test_what_another_beats_in_everything_is_not_handed_over():
    choice = choose(SEEN, ASKED)
    assert choice is not None
    assert choice.what == "first-int8"
    assert choice.beaten_by == {"degree-004": "first-int8"}
    assert choice.why == "of 2 models that meet all goals, none beats it in accuracy, speed or size"
    told = asked_for("degree-004", SEEN, ASKED)
    assert "first, directly in int8 beats it in everything" in told.why
    assert asked_for("first-int8", SEEN, ASKED).beaten_by == {}


def test_among_those_that_none_beats_the_fastest_is_chosen():
    models = {
        "first": model(0.99, 1600, 19.0), "first-int8": model(0.98, 2000, 6.0), "degree-003": model(0.971, 4000, 3.0),
    }  # fmt: skip
    choice = choose(models, ASKED)
    assert choice is not None
    assert choice.what == "degree-003"
    assert choice.why.startswith(
        "the fastest of the 3 models that meet all goals and that no other beats in everything"
    )
    assert "first, directly in int8 (+0.90 points, 0.50 times the speed, 2.00 times the size)" in choice.why


def test_none_or_one_alone():
    assert choose({"first": model(0.5)}, ASKED) is None
    assert choose({}, ASKED) is None
    choice = choose({"first": model(0.5), "second": model()}, ASKED)
    assert choice is not None
    assert (choice.what, choice.why) == ("second", "the only model at hand that meets all goals")


def test_a_difference_of_speed_within_the_spread_counts_as_equal():
    slower, quicker = model(0.98, 2000, 10.0, spread=0.02), model(0.975, 2050, 10.0, spread=0.02)
    assert not faster(quicker, slower, ASKED)
    assert beats(slower, quicker, ASKED)
    choice = choose({"first-int8": slower, "degree-003": quicker}, ASKED)
    assert choice is not None
    assert choice.what == "first-int8"
    # Measured exactly, the quicker one is the faster.
    exact = {"first-int8": model(0.98, 2000, 10.0), "degree-003": model(0.975, 2050, 10.0)}
    choice = choose(exact, ASKED)
    assert choice is not None
    assert choice.what == "degree-003"
    # As fast, more accurate and larger: neither beats the other, and accuracy decides.
    choice = choose({"first-int8": slower, "degree-003": model(0.975, 2050, 9.0, spread=0.02)}, ASKED)
    assert choice is not None
    assert choice.what == "first-int8"
    assert "the most accurate of those as fast as the fastest, within the measured spread," in choice.why


def test_latency_is_the_speed_where_it_is_asked_for():
    by_latency = Conditions(min_accuracy=0.9, max_latency_ms=1.0)
    assert faster(model(images_per_s=2000), model(images_per_s=1500), by_latency)
    assert not faster(model(images_per_s=2000, spread=0.3), model(images_per_s=1500), by_latency)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_chosen_meets_the_goals_and_none_beats_it(seed):
    drawn = random.Random(seed)
    names = ["first", "first-int8", "second", *map(degree_name, range(9))]
    for _ in range(50):
        models = {
            name: model(
                drawn.choice([0.96, 0.97, 0.975, 0.98, 0.99]), drawn.uniform(1000, 3000), drawn.choice([5, 10, 30]),
                drawn.choice([0.0, 0.05, 0.3]),
            )
            for name in names
        }  # fmt: skip
        good = {name for name, judged in models.items() if ASKED.verdict(judged) is Verdict.SATISFIED}
        choice = choose(models, ASKED)
        assert (choice is not None) == bool(good)
        if choice is not None:
            assert choice.what in good
            assert not any(beats(models[name], models[choice.what], ASKED) for name in good)
            assert choice.beaten_by.keys() < good


def test_beating_is_never_mutual():
    models = [model(a, s, m, 0.1) for a, s, m in itertools.product([0.97, 0.98], [1000, 1100, 2000], [5, 10])]
    assert not any(beats(a, b, ASKED) and beats(b, a, ASKED) for a, b in itertools.product(models, models))
    assert not any(beats(a, a, ASKED) for a in models)


def test_a_verdict_says_by_how_much_each_goal_is_missed():
    assert standing(model(), ASKED) == "met"
    missed = "missed accuracy by 0.50 points, speed by 500 images/s, size by 5.00 MB"
    assert standing(model(0.965, 1000, 25.0), ASKED) == missed
    line = verdict_line("degree-004", model(0.98, 1450, 10.0, spread=0.05), ASKED)
    assert line == (
        "third, degree 4, int8: accuracy 98.00%, 1,450 images/s, 0.69 ms, 10.00 MB: missed speed by 50 images/s "
        "(less than the measured spread)"
    )
    by_latency = Conditions(min_accuracy=0.9, max_latency_ms=0.25)
    assert standing(model(), by_latency) == "missed speed by 0.25 ms"


def test_names():
    assert title_of(degree_name(12)) == "third, degree 12, int8"
    assert title_of(float_name(0)) == "third, degree 0, float32"
    assert title_of("first-int8") == "first, directly in int8"
