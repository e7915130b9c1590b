"""Paired differences to the whole image, and the conclusion in words."""

import msgspec
import pytest
from tiny_comparison import METHODS, report, trial

from simulations.compare.differences import conclusion, differences, references

WHOLE, MERGED, SPLIT = METHODS[0], METHODS[1], METHODS[2]


def _report(by_method):
    """Return a report of these accuracies, by method, one for each seed."""
    trials = [trial(method, seed, found) for method, of in by_method for seed, found in enumerate(of)]
    full = report()
    names = {method.name for method, _ in by_method}
    kept = tuple(summary for summary in full.summaries if summary.method.name in names)
    return msgspec.structs.replace(full, measurements=tuple(trials), summaries=kept)


def test_differences_are_paired_by_seed():
    """The seeds' own spread does not count; the interval is Student's, worked out by hand."""
    made = _report([(WHOLE, (0.5, 0.7, 0.9)), (SPLIT, (0.49, 0.68, 0.87))])
    (found,) = differences(made, WHOLE.name)
    # 1, 2 and 3 points below: mean 2, standard error 1/sqrt(3), t of two degrees of freedom 4.303.
    assert found.mean == pytest.approx(-2.0)
    assert (found.low, found.high) == (pytest.approx(-4.484, abs=1e-3), pytest.approx(0.484, abs=1e-3))
    assert str(found) == "-2.0 (-4.5 to +0.5)"
    assert "not shown to differ: 2x2 patches of 8x8" in conclusion(made)


def test_seeds_that_only_one_of_the_two_has_are_left_out():
    made = _report([(WHOLE, (0.5, 0.7, 0.9)), (SPLIT, (0.49, 0.68))])
    (found,) = differences(made, WHOLE.name)
    assert found.mean == pytest.approx(-1.5)
    one = _report([(WHOLE, (0.5,)), (SPLIT, (0.49, 0.68))])
    assert differences(one, WHOLE.name) == []


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [((0.40, 0.61, 0.80), "below it"), ((0.60, 0.79, 1.0), "above it"), ((0.4, 0.8, 0.9), "not shown to differ")],
)
def test_what_the_intervals_show(accuracies, said):
    made = _report([(WHOLE, (0.5, 0.7, 0.9)), (SPLIT, accuracies)])
    assert conclusion(made).endswith(f"differences: {said}: {SPLIT.name}.")


def test_one_seed_concludes_nothing():
    made = _report([(WHOLE, (0.5,)), (SPLIT, (0.9,))])
    assert "one seed" in conclusion(made) and "none is concluded" in conclusion(made)
    assert "Differences by seed" not in dict(made.headed_tables)
    assert conclusion(_report([(SPLIT, (0.5, 0.6))])) == ""


def test_the_table_has_a_column_for_each_reference():
    made = _report([(WHOLE, (0.5, 0.7)), (MERGED, (0.5, 0.7)), (SPLIT, (0.49, 0.69))])
    head, rows = dict(made.headed_tables)["Differences by seed"]
    assert references(made) == [WHOLE.name, MERGED.name]
    assert head == ("accuracy, points", "minus whole image", "minus whole image, augmented by patches")
    assert rows == [
        (WHOLE.name, "-", "+0.0 (+0.0 to +0.0)"),
        (MERGED.name, "+0.0 (+0.0 to +0.0)", "-"),
        (SPLIT.name, "-1.0 (-1.0 to -1.0)", "-1.0 (-1.0 to -1.0)"),
    ]
