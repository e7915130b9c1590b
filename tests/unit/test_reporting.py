import pytest

from psl_flower.engine.lower import StepLoss
from psl_flower.engine.rounds import StepReport
from psl_flower.errors import TrainingStopped
from psl_flower.runs import create_run
from server.reporting import Reporter


def _report(step: int) -> StepReport:
    loss = StepLoss(full=1.0 / step, lower=1.0 / step, uppers=0.0, correct=1)
    return StepReport(
        step=step, epoch=0, loss=loss, num_samples=4, seconds=0.01, upper_s=0.004, lower_s=0.004, wire_s=0.002
    )


@pytest.mark.parametrize("every_s", [0, 0.001, 60])
def test_a_status_names_the_last_step_however_soon_the_end_comes(tmp_path, every_s):
    run = create_run(tmp_path, "tiny", "digits")
    reporter = Reporter(run, run_id="1", every_s=every_s)
    reporter.plan(rounds=2, total_steps=10, steps_per_round=5, done=0)
    for step in range(1, 8):
        reporter.step(_report(step))
    reporter.fail(TrainingStopped("stopped after step 7, as asked"))
    status = run.read_status()
    assert status is not None and (status.state, status.step, status.round) == ("stopped", 7, 2)
