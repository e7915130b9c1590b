"""Codes cross both transports through real Flower runs, to the weights of one process; such runs are used as others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import TINY, Place, differing, last_json, model, oracle

CODE = ("protection=code", "code-size=6", "cut=layer4", "backbone-width=8", "wire-gradients=int8")


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_codes_cross_the_wire_exactly(place: Place, transport: str) -> None:
    settings = ("rounds=1", "steps-per-round=3", f"transport={transport}", "run-name=codes")
    done = place.psl("train", *TINY, *CODE, *settings)
    assert done.returncode == 0, done.stderr
    run = place.run("codes")
    assert differing(model(run), oracle(run, 3)) == []
    assert differing(model(run), oracle(run, 2)) != []
    # 3 steps of 16 images and a test split of 32, 6 bits each from 4 nodes: 240 bytes beside the heads of frames.
    (metrics,) = run.read_metrics()
    assert metrics["bytes_up"] < 240 + 4 * 4 * 400

    own = np.load(run.path / "predictions.npz")["predicted"]
    done = place.psl("predict", "--in-place", "codes", "--json")
    assert done.returncode == 0, done.stderr
    found = np.load(Path(last_json(done.stdout)["predictions"]))["predicted"]
    assert np.array_equal(found, own)


def test_looks_are_sent_once_and_then_no_byte(place: Place) -> None:
    settings = ("rounds=3", "steps-per-round=2", "freeze-uppers-after=1", "looks=2", "run-name=looks")
    done = place.psl("train", *TINY, *CODE, *settings)
    assert done.returncode == 0, done.stderr
    run = place.run("looks")
    assert differing(model(run), oracle(run, 6)) == []
    _, looked, alone = run.read_metrics()
    assert looked["bytes_up"] > 0
    assert (alone["bytes_up"], alone["bytes_down"]) == (0, 0)
