"""A short storm on a deployed federation; `python -m simulations.chaos --deployed --kills 200` is a long one."""

import pytest

from psl_flower.launch.environment import environment
from simulations.chaos.deployed import SETTINGS
from simulations.chaos.federation import Federation
from simulations.chaos.trials import ONE_RUN, TWO_RUNS, Plan, attempt
from simulations.separate_hosts.network import Network, NotAllowed, why_not

PLANS = {
    "one run": Plan(name="storm", kind=ONE_RUN, kills=2, steps=24, seed=3),
    "two runs at once": Plan(name="storm", kind=TWO_RUNS, kills=1, steps=24, seed=4),
    "over the flower transport": Plan(
        name="storm", kind=ONE_RUN, transport="flower", kills=1, steps=4, steps_per_round=2, seed=5
    ),
}


@pytest.mark.slow  # make e2e has the storm over a simulation
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_kills_leave_the_weights_as_they_would_be(tmp_path, plan):
    if reason := why_not():
        pytest.skip(reason)
    try:
        network = Network(tmp_path / "hosts", 2, environment())
    except NotAllowed as error:
        pytest.skip(f"this machine does not allow separate hosts: {error}")
    try:
        settings = [f"{key}={value}" for key, value in SETTINGS.items()]
        federation = Federation(network, "digits", ("--max-train", "96", "--max-test", "32"), settings)
        federation.start()
        trial = attempt(federation, plan)
    finally:
        network.close()
    assert trial.equal, (trial, federation.logs())
    assert len(trial.kills) == plan.kills
    assert all(kill.recovery_s is None or kill.recovery_s > 0 for kill in trial.kills)
    assert len(trial.weights) == trial.runs and len(trial.undisturbed) == 64
