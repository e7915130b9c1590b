"""The clock of the machine is set, by hours, while `psl train` runs: the run ends as it would have."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Place, differing, model, oracle, wait_until
from tests.security.other_clock import environment

STEPS = 6


@pytest.mark.timeout(1200)
@pytest.mark.slow  # libfaketime makes Ray's start take minutes on a busy machine
@pytest.mark.parametrize("offset", ["-5h", "+5h"])
def test_during_a_run(place: Place, tmp_path: Path, offset: str) -> None:
    """Also in Flower's and Ray's processes. The status was once taken for that of an attempt before.

    Set forward, or after a machine has slept, Flower takes the run's process for dead: its last sign of life is hours old.
    """
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    place.environment |= environment(clock, at_once=False)
    process = place.start_psl("train", *TINY, "rounds=2", f"steps-per-round={STEPS // 2}", "run-name=run")
    run = place.run("run")
    wait_until(lambda: (status := run.read_status()) is not None and status.step >= 1, 480, "the first step")
    (tmp_path / "new").write_text(f"{offset}\n")
    (tmp_path / "new").rename(clock)
    output, _ = process.communicate(timeout=600)
    status = run.read_status()
    assert process.returncode == 0 and status is not None and status.state == "completed", output
    assert abs(status.updated - time.time()) > 3600  # the clock was another one
    assert ("the clock leapt ahead by 5:0" in output) == (offset == "+5h"), output
    assert differing(model(run), oracle(run, STEPS)) == []
