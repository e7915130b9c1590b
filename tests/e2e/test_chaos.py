"""A short storm of kills; `python -m simulations.chaos --kills 50` is a long one."""

import pytest

from simulations.chaos import main, storm


def test_kills_leave_the_weights_as_they_would_be(tmp_path):
    outcome = storm(tmp_path, kills=2, seed=3, steps=12)
    assert sum(outcome.kills.values()) == 2
    assert outcome.seconds_lost > 0
    assert outcome.equal


def test_a_storm_needs_a_kill():
    with pytest.raises(SystemExit) as caught:
        main(["--kills", "0"])
    assert caught.value.code == 2
