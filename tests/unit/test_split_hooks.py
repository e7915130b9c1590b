"""What a training over parties takes: inputs, models, optimisers, losses and callbacks of many kinds, each as plain PyTorch has it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from psl_flower.errors import DataError
from psl_flower.flower import split_client
from psl_flower.split import EarlyStopping, LocalResult, PartySide, Training, fit_local
from tests import plain_split as plain
from tests.parties_in_process import party_with, training

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = np.arange(24)
ROWS = torch.arange(24)
SETTINGS: dict[str, Any] = {"lr": 0.02, "batch_size": 6, "epochs": 2, "seed": 3}
Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


class Concatenated(nn.Module):
    def __init__(self, width: int, targets: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(width, targets)

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.cat([part.flatten(1) for part in outputs], 1))


class Sum(nn.Module):
    """Has no parameters."""

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        return sum(outputs[1:], outputs[0])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(1000, 3), nn.Linear(2, 3)

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.embedding(ids) + self.fc(numbers)


class Table:
    """Data that are neither a tensor nor an array: ids up to 999 and numbers, read by row."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        assert rows.dtype == np.int64
        return (rows * 41) % 1000, torch.from_numpy(np.stack([rows, rows**2], 1) / 100).float()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(24, *shape, generator=torch.Generator().manual_seed(seed))


def fit(
    nets: dict[str, Callable[[], nn.Module]], data: dict[str, Any], top: Callable[[], nn.Module], targets: torch.Tensor,
    loss: Any, optimizer: Optimizers = lambda net: torch.optim.Adam(net.parameters()), **side: Any,
) -> LocalResult:  # fmt: skip
    """Train over parties; `optimizer` makes that of a net."""

    def party(name: str, context: Any) -> PartySide:
        net = nets[name]()
        return PartySide(net, data[name], optimizer(net) if list(net.parameters()) else torch.optim.Adam, **side)

    with torch.no_grad():
        inputs = {name: data[name][SAMPLES[:2]] for name in data}
        shapes = {
            name: tuple(net().eval()(*(part if isinstance(part, tuple) else (part,)))[0].shape)
            for (name, net), part in zip(nets.items(), map(tensors, inputs.values()), strict=True)
        }
    made = Training(
        top, shapes, labels=targets, train=SAMPLES, loss=loss, optimizer=lambda parameters: torch.optim.Adam(parameters),
        **SETTINGS,
    )  # fmt: skip
    return fit_local(party, made)


def tensors(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(torch.as_tensor(each) for each in part)
    return torch.as_tensor(part)


def loop(
    nets: dict[str, Callable[[], nn.Module]], data: dict[str, Any], top: Callable[[], nn.Module], targets: torch.Tensor,
    loss: Any, optimizer: Optimizers = lambda net: torch.optim.Adam(net.parameters()),
    rates: Sequence[float] = (1.0,), local: Any = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Return the weights after the same training in plain PyTorch; group i of every party learns at `rates[i]`."""
    made = {}
    for name, make in nets.items():
        torch.manual_seed(plain.derive(SETTINGS["seed"], "init", name))
        made[name] = make()
    torch.manual_seed(plain.derive(SETTINGS["seed"], "init", "top"))
    joined = top()
    own = [optimizer(net) for net in made.values() if list(net.parameters())]
    tops = [torch.optim.Adam(joined.parameters())] if list(joined.parameters()) else []
    for batch in plain.batches(SAMPLES, SETTINGS["batch_size"], SETTINGS["epochs"], SETTINGS["seed"]):
        outputs, locals_ = [], []
        for name, net in made.items():
            inputs = tensors(data[name][batch])
            outputs.append(net(*inputs) if isinstance(inputs, tuple) else net(inputs))
            if local is not None:
                locals_.append(local(outputs[-1], inputs))
        value = loss(joined(*outputs), targets[torch.from_numpy(batch)]) + sum(locals_)
        for each in [*own, *tops]:
            each.zero_grad()
        value.backward()
        for each in own:
            for group, rate in zip(each.param_groups, rates, strict=True):
                group["lr"] = SETTINGS["lr"] * rate
        for each in tops:
            each.param_groups[0]["lr"] = SETTINGS["lr"]
        for each in [*own, *tops]:
            each.step()
    return plain.snapshot(made, joined)


def same(result: LocalResult, expected: dict[str, torch.Tensor]) -> list[str]:
    found = plain.snapshot(result.nets, result.top)
    assert found.keys() == expected.keys()
    assert found
    return [name for name in found if not torch.equal(found[name], expected[name])]


TWO: dict[str, Callable[[], nn.Module]] = {"a": lambda: nn.Linear(4, 3), "b": lambda: nn.Linear(2, 3)}
TWO_DATA = {"a": draw(4), "b": draw(2, seed=1)}
KINDS: dict[str, tuple[Any, ...]] = {
    # Integers of any size stay integers; several inputs; data that are read by row.
    # No party's output is one number wide: some processors then add a gradient that is a slice in another order.
    "int64 ids": ({"a": TwoInputs, "b": lambda: nn.Linear(2, 3)}, {"a": Table(), "b": draw(2)},
                  lambda: Concatenated(6), draw(1, seed=2), nn.functional.mse_loss),
    "bytes": ({"a": lambda: nn.Sequential(nn.Flatten(), nn.Embedding(256, 2), nn.Flatten())},
              {"a": torch.arange(24 * 3).reshape(24, 3).to(torch.uint8).int()}, lambda: Concatenated(6), draw(1),
              nn.functional.mse_loss),
    "no parameters in a party": ({"a": nn.Flatten, "b": lambda: nn.Linear(2, 3)}, {"a": draw(2, 2), "b": draw(2)},
                                 lambda: Concatenated(7), draw(1, seed=2), nn.functional.mse_loss),
    "no parameters in the top": (TWO, TWO_DATA, Sum, ROWS % 3, nn.functional.cross_entropy),
    "several labels": (TWO, TWO_DATA, lambda: Concatenated(6, 5), (draw(5, seed=2) > 0).float(),
                       nn.functional.binary_cross_entropy_with_logits),
    "sequences": ({"a": lambda: nn.Conv1d(2, 3, 3), "b": lambda: nn.Linear(2, 4)}, {"a": draw(2, 8), "b": draw(2)},
                  lambda: Concatenated(22), draw(1, seed=2), nn.functional.l1_loss),
    "volumes": ({"a": lambda: nn.Conv3d(1, 2, 2)}, {"a": draw(1, 3, 3, 3)}, lambda: Concatenated(16), draw(1),
                nn.functional.mse_loss),
    "a transformer": ({"a": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)},
                      {"a": draw(5, 4)}, lambda: Concatenated(20), draw(1), nn.functional.mse_loss),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_models_and_data_of_many_kinds(kind: str) -> None:
    assert same(fit(*KINDS[kind]), loop(*KINDS[kind])) == []


def groups(net: nn.Module) -> torch.optim.Optimizer:
    """Return Adam over two groups, of which the second learns at a quarter."""
    first, *others = net.parameters()
    return torch.optim.Adam([{"params": [first]}, {"params": others, "lr": 0.25}], lr=1.0)


def test_parameter_groups_keep_their_proportions() -> None:
    arguments = (TWO, TWO_DATA, lambda: Concatenated(6), draw(1, seed=2), nn.functional.mse_loss, groups)
    result = fit(*arguments)
    assert same(result, loop(*arguments, rates=(1.0, 0.25))) == []
    assert same(result, loop(*arguments, rates=(1.0, 1.0))) != []


def test_a_local_loss_is_added_for_its_party() -> None:
    def local(output: torch.Tensor, inputs: Any) -> torch.Tensor:
        return 0.3 * output.square().mean()

    arguments = (TWO, TWO_DATA, lambda: Concatenated(6), draw(1, seed=2), nn.functional.mse_loss)
    result = fit(*arguments, local_loss=local)
    assert same(result, loop(*arguments, local=local)) == []
    assert same(result, loop(*arguments)) != []


def test_rows_are_matched_by_id() -> None:
    """Every party has the samples in another order, and the server too: the weights are those of sorted rows."""
    names = [f"patient-{(7 * i) % 60:02d}" for i in range(60)]
    orders = {name: np.random.default_rng(i).permutation(60) for i, name in enumerate([*plain.PARTIES, "server"])}

    def party(name: str, context: Any) -> PartySide:
        order = orders[name] if shuffled else np.arange(60)
        data = plain.columns()[name][torch.from_numpy(order)]
        return PartySide(plain.net(name), data, torch.optim.Adam, ids=[names[i] for i in order])

    found = []
    for shuffled in (True, False):
        order = orders["server"] if shuffled else np.arange(60)
        place = np.argsort(order)
        made = training(
            labels=plain.labels()[torch.from_numpy(order)], ids=[names[i] for i in order],
            train=place[plain.TRAIN], valid=place[plain.VALID],
        )  # fmt: skip
        result = fit_local(party, made)
        assert isinstance(result.outputs, torch.Tensor)
        found.append(plain.snapshot(result.nets, result.top) | {"outputs": result.outputs})
    assert plain.differing(*found) == []


def test_early_stopping_ends_a_training_and_stays_so(tmp_path: Path) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0])

    def falling(outputs: Any, targets: Any) -> float:
        return next(losses)

    def made() -> Training:
        stopping = EarlyStopping("falling", patience=2, mode="min")
        return training(epochs=9, metrics={"falling": falling}, callbacks=[stopping], workdir=tmp_path)

    party = party_with(torch.optim.Adam)
    assert [record["falling"] for record in fit_local(party, made()).rounds] == [3.0, 2.0, 2.5, 2.4]
    assert len(fit_local(party, made()).rounds) == 4


def test_a_schedule_of_ones_own_and_a_longer_training(tmp_path: Path) -> None:
    rates: list[float] = []

    def note(record: Any) -> None:
        if record["event"] == "step":
            rates.append(record["lr"])

    party = party_with(torch.optim.SGD)
    fit_local(party, training(epochs=1, schedule=lambda step: 1 / (step + 1), callbacks=[note]))
    assert rates == [0.01 * (1 / (step + 1)) for step in range(6)]
    for epochs in (1, 2):
        result = fit_local(party, training(epochs=epochs, workdir=tmp_path))
        assert len(result.rounds) == epochs
    whole = fit_local(party, training(epochs=2))
    assert plain.differing(plain.snapshot(result.nets, result.top), plain.snapshot(whole.nets, whole.top)) == []


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_samples_that_a_party_lacks_are_zeros_and_spoil_no_batch_norm() -> None:
    """Two rows of one party hold NaN, which nothing may read; in one batch it has no sample at all."""
    batches = plain.batches(SAMPLES, SETTINGS["batch_size"], SETTINGS["epochs"], SETTINGS["seed"])
    present = np.ones(24, bool)
    present[[3, 8, *batches[2]]] = False
    data = {"a": draw(4), "b": draw(2, seed=1)}
    data["b"][torch.from_numpy(~present)] = torch.nan
    targets, nets = draw(1, seed=2), {"a": lambda: nn.Linear(4, 3), "b": normed}

    def party(name: str, context: Any) -> PartySide:
        return PartySide(nets[name](), data[name], torch.optim.Adam, present=present if name == "b" else None)

    shapes = {"a": (3,), "b": (3,)}
    made = Training(
        lambda: Concatenated(6), shapes, labels=targets, train=SAMPLES, loss=nn.functional.mse_loss,
        optimizer=torch.optim.Adam, **SETTINGS,
    )  # fmt: skip
    result = fit_local(party, made)

    class Holed(nn.Module):
        """Runs its net on the rows of a batch that are there."""

        def __init__(self) -> None:
            super().__init__()
            self.net = normed()

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            there = ~rows.isnan().any(1)
            whole = torch.zeros(len(rows), 3)
            return torch.index_put(whole, (there.nonzero()[:, 0],), self.net(rows[there])) if there.any() else whole

    expected = loop({"a": nets["a"], "b": Holed}, data, lambda: Concatenated(6), targets, nn.functional.mse_loss)
    assert same(result, {name.replace("b.net.", "b."): value for name, value in expected.items()}) == []


def test_a_mask_of_the_wrong_length() -> None:
    with pytest.raises(DataError, match=r"party 'a': present: expected one bool for each of 24 rows, got bool \(3,\)"):
        fit(TWO, TWO_DATA, lambda: Concatenated(6), draw(1), nn.functional.mse_loss, present=np.ones(3, bool))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 6)

    def forward(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(numbers), self.two(numbers).reshape(-1, 2, 3)


class OfThree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], other: torch.Tensor) -> torch.Tensor:
        return self.fc(pair[0] * pair[1].mean(1) + other)


def test_several_tensors_of_a_party() -> None:
    nets = {"a": TwoOutputs, "b": lambda: nn.Linear(2, 3)}
    targets = draw(1, seed=2)
    made = Training(
        OfThree, {"a": [(3,), (2, 3)], "b": 3}, labels=targets, train=SAMPLES, loss=nn.functional.mse_loss,
        optimizer=torch.optim.Adam, **SETTINGS,
    )  # fmt: skip
    result = fit_local(lambda name, context: PartySide(nets[name](), TWO_DATA[name], torch.optim.Adam), made)
    assert same(result, loop(nets, TWO_DATA, OfThree, targets, nn.functional.mse_loss)) == []


def test_each_round_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "psl_flower")
    result = fit_local(party_with(torch.optim.Adam), training(epochs=3, metrics={"accuracy": plain.accuracy}))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("round ")]
    for line, record in zip(lines, result.rounds, strict=True):
        start = f"round {record['round']}/3: loss {record['loss']:.4g}, "
        assert line.startswith(start) and f"accuracy {record['accuracy']:.4g}, " in line
        assert re.search(r", \d+\.\d s, \d+ samples/s$", line)
    named = {"event", "round", "step", "loss", "accuracy", "seconds", "bytes_up", "bytes_down"}
    assert all(named <= record.keys() for record in result.rounds)  # as the docstring says


def test_requests_of_flower_are_not_logged_at_info() -> None:
    requests = logging.getLogger("httpx")
    before = requests.level
    try:
        for chosen, expected in ((logging.NOTSET, logging.WARNING), (logging.DEBUG, logging.DEBUG)):
            requests.setLevel(chosen)
            split_client(party_with(torch.optim.Adam))
            assert requests.level == expected
    finally:
        requests.setLevel(before)
