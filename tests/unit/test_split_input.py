"""Wrong input to a training over parties: one clear error each, before anything is trained or with what was committed kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from psl_flower.errors import AlignmentError, ConfigError, DataError, PslError, RunError, TrainingError
from psl_flower.split import EarlyStopping, PartySide, Training, fit_local
from psl_flower.split.folder import TrainingFolder
from tests import plain_split as plain
from tests.parties_in_process import arguments, over_nodes, party_with, training

ADAM = torch.optim.Adam
ONE = {"epochs": 1}


def fit(party: Any = None, **changes: Any) -> Any:
    return fit_local(party or party_with(ADAM), training(**(ONE | changes)))


def sides(**others: PartySide) -> Any:
    usual = party_with(ADAM)
    return lambda name, context: others.get(name) or usual(name, context)


def fare(**changes: Any) -> PartySide:
    told = {"net": plain.net("fare"), "data": plain.columns()["fare"], "optimizer": ADAM}
    return PartySide(**(told | changes))


def raising(*_: object) -> float:
    raise KeyError("age")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"labels": torch.tensor(1.0)}, ConfigError, "labels: expected one row per sample, got a single number"),
        ({"train": [0, 1, 1]}, ConfigError, "train: 1 samples occur more than once"),
        ({"train": [0, 60]}, ConfigError, "train: a sample is outside the 60 that have labels"),
        ({"train": [0.5, 1.0]}, ConfigError, "train: expected a row of sample numbers or a mask, got float64 (2,)"),
        ({"train": np.ones(3, bool)}, ConfigError, "train: expected a mask of 60 samples, got shape (3,)"),
        ({"train": []}, ConfigError, "training needs 2 or more samples, the dataset has 0"),
        ({"valid": [3, 50]}, ConfigError, "valid: 1 of its samples are in train, too"),
        ({"lr": float("nan")}, ConfigError, "lr: expected a finite number above 0, got nan"),
        ({"epochs": 0}, ConfigError, "epochs: expected 1 or more, got 0"),
        ({"seed": -1}, ConfigError, "seed: expected 0 or more, got -1"),
        ({"schedule": "up"}, ConfigError, "schedule: expected one of"),
        ({"metrics": {"loss": plain.accuracy}}, ConfigError, "metrics: loss: a round's record has that name already"),
        ({"ids": [1, 2]}, AlignmentError, "the server's labels: 60 samples, but 2 ids; give one id per sample"),
        ({"ids": [7] * 60}, AlignmentError, "the server's labels: 59 ids occur more than once"),
    ],
)  # fmt: skip
def test_what_a_training_is_made_of(changes: dict[str, Any], error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        training(**changes)


@pytest.mark.parametrize(
    ("parties", "words"),
    [
        ({}, "parties: none given"),
        ({"../x": (3,)}, "parties: '../x': expected a name of letters, digits"),
        ({"top": (3,)}, "other than 'top'"),
        ({"a": (0,)}, "parties: a: expected a shape of up to 5 positive sizes, got (0,)"),
        ({"a": (1, 1, 1, 1, 1, 1)}, "parties: a: expected a shape of up to 5 positive sizes"),
    ],
)
def test_parties(parties: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        Training(plain.Top, parties, **arguments(ADAM))


@pytest.mark.parametrize(
    ("side", "error", "words"),
    [
        ({"data": plain.columns()["fare"][:50]}, AlignmentError, "party 'fare' holds 50 samples, but there are 60 labels"),
        ({"ids": range(60)}, AlignmentError, "party 'fare' gives other ids for its samples, the server gives none"),
        ({"ids": [*range(59), 58]}, AlignmentError, "party 'fare': 1 ids occur more than once"),
        ({"net": nn.Linear(5, 7)}, ConfigError, "party 'fare': for 8 samples its net returned (8, 7), the training "
         "expects (8, 6)"),
        ({"net": nn.Linear(5, 6).double(), "data": plain.columns()["fare"].double()}, ConfigError,
         "party 'fare': expected its net to return float32 numbers, got torch.float64"),
        ({"data": 5}, DataError, "party 'fare': its data have no length"),
        ({"optimizer": ADAM(nn.Linear(1, 1).parameters())}, ConfigError, "parameters that are not of its model"),
        ({"local_loss": lambda output, inputs: output}, TrainingError, "party 'fare': its local loss: expected one number"),
    ],
)  # fmt: skip
def test_what_a_party_brings(side: dict[str, Any], error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        fit(sides(fare=fare(**side)))


def test_a_party_that_brings_nothing() -> None:
    with pytest.raises(ConfigError, match="party 'person': expected the function to return a PartySide, got NoneType"):
        fit(lambda name, context: None)


def test_labels_of_the_wrong_length() -> None:
    changes = {"labels": torch.zeros(61)}
    with pytest.raises(AlignmentError, match="party 'person' holds 60 samples, but there are 61 labels"):
        fit(**changes)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            lambda outputs, targets: (outputs - targets) ** 2,
            "the loss: expected one number, got a tensor of shape (8,)",
        ),
        (lambda outputs, targets: 1.0, "the loss: expected a tensor of one number, got float"),
        (lambda outputs, targets: (outputs - targets).mean() / 0, "step 0: the loss is "),
    ],
)
def test_loss(loss: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(words)):
        fit(loss=loss)


def test_a_metric_that_raises(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=re.escape("the metric 'age' raised KeyError: 'age' (after step 6)")):
        fit(metrics={"age": raising}, workdir=tmp_path)
    assert TrainingFolder(tmp_path).checkpoints.steps() == [6]
    # Mended, only the evaluation is left to do.
    told: list[Any] = []
    result = fit(metrics={"accuracy": plain.accuracy}, workdir=tmp_path, callbacks=[told.append])
    assert [record["event"] for record in told] == ["round", "end"]
    assert result.rounds[0]["accuracy"] > 0


@pytest.mark.parametrize("event", ["step", "round", "end"])
def test_a_callback_that_raises(event: str) -> None:
    def broken(record: Any) -> None:
        if record["event"] == event:
            raise KeyError("age")

    with pytest.raises(TrainingError, match=f"the callback broken raised KeyError: 'age' \\(at the {event} of step"):
        fit(callbacks=[broken])


def test_early_stopping_asks_for_a_metric_that_is_there() -> None:
    with pytest.raises(ConfigError, match="EarlyStopping: a round has no metric 'auc'; there are: accuracy, loss"):
        fit(callbacks=[EarlyStopping("auc")])
    with pytest.raises(ConfigError, match="EarlyStopping: mode: expected 'max' or 'min', got 'up'"):
        EarlyStopping("auc", mode="up")
    for unclear in ("score", "error-correlation"):
        with pytest.raises(
            ConfigError, match=f"'{unclear}' does not tell whether larger or smaller is better; add mode="
        ):
            EarlyStopping(unclear)


@pytest.mark.parametrize("metric", ["loss", "rmse", "valid-mae", "mean_error"])
def test_a_metric_that_falls_does_not_end_a_training(metric: str, caplog: pytest.LogCaptureFixture) -> None:
    stopping = EarlyStopping(metric, patience=2)
    rounds = [{"event": "round", "round": number, metric: 1.0 / number} for number in range(1, 9)]
    assert not any(stopping(record) for record in rounds)
    with caplog.at_level("INFO", "psl_flower"):
        assert [stopping({"event": "round", "round": n, metric: 2.0}) for n in (9, 10)] == [False, True]
    assert f"early stopping: {metric} has not improved since round 8 (0.125), 2 rounds ago" in caplog.text


def test_a_workdir_of_another_training(tmp_path: Path) -> None:
    fit(workdir=tmp_path)
    with pytest.raises(RunError, match="lr: the training began with 0.01, it is now 0.1; use another workdir"):
        fit(workdir=tmp_path, lr=0.1)


def test_other_threads_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(workdir=tmp_path, threads=1)
    assert caplog.text == ""
    fit(workdir=tmp_path, threads=2, epochs=2)
    for who in ("the server's model", "party 'person'", "party 'fare'", "party 'family'"):
        assert f"{who}: the checkpoint was made with 1 threads, this process computes with 2" in caplog.text


def test_a_stream_and_its_settings() -> None:
    with pytest.raises(ConfigError, match="transport"):
        over_nodes(transport="pigeon")
    with pytest.raises(ConfigError, match="on_missing_node: a party cannot be done without here"):
        over_nodes(on_missing_node="continue")
    with pytest.raises(ConfigError, match="gradient_feedback: works in patch-split training alone"):
        over_nodes(gradient_feedback=True, wire_gradients="int8")
    with pytest.raises(ConfigError, match="workdir: give a folder for checkpoints"):
        over_nodes().fit(None)


@pytest.mark.parametrize("given", ["adam", None, lambda parameters: "adam"])
def test_what_is_no_optimiser(given: Any) -> None:
    """At a party, at the server, and at the head of the party that has the labels."""
    words = "optimizer: expected a class such as torch.optim.Adam, a function of the parameters"
    with pytest.raises(ConfigError, match=f"party 'fare': {words}"):
        fit(sides(fare=fare(optimizer=given)))
    with pytest.raises(ConfigError, match=words):
        fit(optimizer=given)
