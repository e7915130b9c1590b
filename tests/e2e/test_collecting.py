"""The Upper models can be collected later than the last step."""

from __future__ import annotations

import shutil

from tests.e2e.conftest import TINY, Place, differing, model, oracle


def test_resume_collects_what_a_failure_after_the_last_step_left(place: Place) -> None:
    assert place.psl("train", *TINY, "rounds=1", "steps-per-round=2", "run-name=late").returncode == 0
    run = place.run("late")
    shutil.rmtree(run.model)
    done = place.psl("train", "resume=late")
    assert done.returncode == 0, done.stderr
    assert differing(model(run), oracle(run, 2)) == []
