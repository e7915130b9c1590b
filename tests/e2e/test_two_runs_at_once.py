"""Two `psl train` in one workspace at once: they do not disturb each other, or one is refused in one clear line."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import TINY, Place, differing, model, oracle

STEPS = 4
SETTINGS = (*TINY, "rounds=2", f"steps-per-round={STEPS // 2}")


@pytest.mark.timeout(900)
def test_with_names_of_their_own(place: Place) -> None:
    """Both find no stores yet, so both want to make them, and the keys."""
    both = {name: place.start_psl("train", *SETTINGS, f"run-name={name}", "uppers=2") for name in ("one", "two")}
    outputs = {name: process.communicate(timeout=800)[0] for name, process in both.items()}
    for name, process in both.items():
        assert process.returncode == 0, outputs
        assert differing(model(place.run(name)), oracle(place.run(name), STEPS)) == []
    made = [path for path in (place.workspace / "stores").iterdir() if path.is_dir()]
    assert len(made) == 1, "each has made stores"


@pytest.mark.timeout(900)
def test_of_one_name(place: Place) -> None:
    """Neither is lost: the one that comes second is told, and changes nothing of the first."""
    both = [place.start_psl("train", *SETTINGS, "run-name=one", "uppers=2") for _ in range(2)]
    outputs = [process.communicate(timeout=800)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], outputs
    refused = outputs[[process.returncode for process in both].index(1)].strip().splitlines()
    assert "there is a run of this name already" in refused[-1] and refused[-1].startswith("error: "), outputs
    assert differing(model(place.run("one")), oracle(place.run("one"), STEPS)) == []
