"""The clock of the machine is set, by hours, while `psl train` runs: the run ends as it would have."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Place, differing, model, oracle, wait_until
from tests.security.other_clock import environment

STEPS = 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jump", ["-5h", "+5h"])
def test_during_a_run(place: Place, tmp_path: Path, jump: str) -> None:
    """Also in Flower's and Ray's processes."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    place.environment |= environment(clock, at_once=False)
    process = place.start_psl("train", *TINY, "rounds=2", f"steps-per-round={STEPS // 2}", "run-name=run")
    run = place.run("run")
    wait_until(lambda: (status := run.read_status()) is not None and status.step >= 1, 240, "the first step")
    (tmp_path / "new").write_text(f"{jump}\n")
    (tmp_path / "new").rename(clock)
    output, _ = process.communicate(timeout=300)
    status = run.read_status()
    assert process.returncode == 0 and status is not None and status.state == "completed", output
    assert (status.updated < time.time() - 3600) == (jump == "-5h")  # the clock was another one
    assert differing(model(run), oracle(run, STEPS)) == []
