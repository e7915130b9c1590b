"""Seeds: distinct by purpose, the same everywhere, evenly spread."""

import numpy as np
import pytest

from psl_flower.seeds import derive, evenly_spaced, uniform

SAMPLES = np.arange(20_000)


def test_derive_is_stable_and_in_range():
    assert derive(0, "order", 0) == 5724104768301139219
    made = {derive(seed, name, i) for seed in range(5) for name in ("a", "b") for i in range(20)}
    assert len(made) == 200
    assert all(0 <= seed < 2**63 for seed in made)


def test_names_do_not_run_together():
    assert derive(1, "ab", "c") != derive(1, "a", "bc")
    assert derive(1, 23) != derive(12, 3)


def test_uniform_depends_on_seed_purpose_and_sample_alone():
    whole = uniform(5, "flip", SAMPLES)
    assert np.array_equal(whole[[7, 3]], uniform(5, "flip", np.array([7, 3])))
    assert not np.array_equal(whole, uniform(6, "flip", SAMPLES))
    assert not np.array_equal(whole, uniform(5, "shift-x", SAMPLES))
    assert whole[:3].tolist() == [0.36972799425709035, 0.9056323869664393, 0.9771963278826072]


def test_uniform_is_uniform():
    # Twenty thousand draws: each tenth holds 2,000, give or take 5 standard deviations of 42.
    drawn = uniform(1, "shift-x", SAMPLES)
    assert 0.0 <= drawn.min() < drawn.max() < 1.0
    counts = np.histogram(drawn, 10, (0, 1))[0]
    assert abs(counts - 2000).max() < 5 * 42.5
    other = uniform(1, "shift-y", SAMPLES)
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 5 / np.sqrt(len(SAMPLES))
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(len(SAMPLES))


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(0, 3, []), (1, 3, [0]), (3, 3, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (5, 1, [0])]
)
def test_some_of_many_are_evenly_spaced(count, most, expected):
    assert evenly_spaced(count, most).tolist() == expected
