"""Parties that match records by private ids: bit-equal to plain PyTorch, in whatever order each holds them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from psl_flower.flower import SplitLearning
from psl_flower.split import PartySide, Training, fit_local, pseudonyms
from tests import parties_in_process as usual
from tests import plain_groups as groups
from tests import plain_split as plain
from tests import plain_u_shape as u

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

ADAM = torch.optim.Adam
KEY = b"a key of sixteen bytes or more"
IDS = [f"Patient-{number:03}" for number in range(plain.NUM_SAMPLES)]
# Of a party's records: samples that it lacks; all have some of no sample, too.
LACKING = {"fare": [3, 8, 44], "family": [8, 20, 21, 50, 59]}


def records(name: str, order: int, lacking: Any = (), samples: Any = None) -> dict[str, Any]:
    """Return a party's records and their ids, in an order of its own, as its own staff may have typed them."""
    held = np.setdiff1d(np.arange(plain.NUM_SAMPLES) if samples is None else samples, lacking)
    columns = plain.columns()[name]
    data = torch.cat([columns[held], torch.full((4, columns.shape[1]), torch.nan)])
    ids = [*(IDS[sample] for sample in held), *(f"Stranger-{number}-of-{name}" for number in range(4))]
    turned = np.random.default_rng(order + len(name)).permutation(len(ids))
    typed = [str.upper, lambda text: f" {text}\n", str][order % 3]
    return {"data": data[turned], "ids": [typed(ids[row]) for row in turned], "id_key": KEY}


def party_with(optimizer: Any, order: int = 0, lacking: Any = None, **changes: Any) -> Any:
    lacking = lacking or {}
    return lambda name, context: PartySide(
        plain.net(name), optimizer=optimizer, **(records(name, order, lacking.get(name, ())) | changes)
    )


def training(optimizer: Any, **changes: Any) -> Training:
    return usual.training(optimizer, **({"ids": pseudonyms(IDS, KEY)} | changes))


def weights(result: Any) -> dict[str, torch.Tensor]:
    return plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_permuted_records_are_a_plain_loop(name: str) -> None:
    optimizer, expected = plain.OPTIMIZERS[name], plain.plain_loop(plain.OPTIMIZERS[name])
    for order in (0, 1):
        assert plain.differing(weights(fit_local(party_with(optimizer, order), training(optimizer))), expected) == []

    def mixed(name: str, context: Any) -> PartySide:
        """Return records whose ids are those of others of the same party."""
        side = party_with(optimizer)(name, context)
        known = [row for row, text in enumerate(side.ids) if "STRANGER" not in text]
        ids = list(side.ids)
        ids[known[0]], ids[known[1]] = ids[known[1]], ids[known[0]]
        return PartySide(side.net, side.data, optimizer, ids=ids, id_key=KEY)

    assert plain.differing(weights(fit_local(mixed, training(optimizer))), expected) != []


def holding() -> dict[str, np.ndarray]:
    everyone = np.arange(plain.NUM_SAMPLES)
    return {name: np.setdiff1d(everyone, LACKING.get(name, [])) for name in plain.PARTIES}


def test_what_a_party_lacks_is_missing() -> None:
    party = party_with(ADAM, lacking=LACKING)
    found = weights(fit_local(party, training(ADAM)))
    assert plain.differing(found, groups.plain_loop(ADAM, holding())) == []
    none = np.concatenate([*LACKING.values()])
    found = weights(fit_local(party, training(ADAM, missing="drop")))
    pool, held_out = np.setdiff1d(plain.TRAIN, none), np.setdiff1d(plain.VALID, none)
    assert plain.differing(found, plain.plain_loop(ADAM, pool=pool, held_out=held_out)) == []


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_over_nodes_that_come_back_with_records_in_another_order(transport: str, tmp_path: Path) -> None:
    options = {"transport": transport, "workdir": tmp_path / "run", "ids": pseudonyms(IDS, KEY)}
    grid = usual.PartiesGrid(party_with(ADAM, 0, LACKING), tmp_path / "state")

    def fail(record: Any) -> None:
        if (record["event"], record["step"]) == ("step", 8):
            raise RuntimeError("power cut")

    with pytest.raises(Exception, match="power cut"):
        grid.fit(usual.over_nodes(callbacks=[fail], **options))
    grid = usual.PartiesGrid(party_with(ADAM, 1, LACKING), tmp_path / "state")
    strategy = usual.over_nodes(**options)
    found = usual.weights_of(strategy, grid.fit(strategy), tmp_path, 18)
    assert plain.differing(found, groups.plain_loop(ADAM, holding())) == []


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_a_node_dies_and_records_are_in_another_order_each_time(transport: str, tmp_path: Path) -> None:
    """With every message of the flower transport, too; and two groups hold the patients of one party."""
    orders = itertools.count()

    def party(name: str, context: Any) -> PartySide:
        kind = name.partition("@")[0]
        held = records(kind, next(orders), samples=groups.held()[name])
        return PartySide(plain.net(kind), optimizer=ADAM, **held)

    grid = usual.PartiesGrid(party, tmp_path / "state", groups.HOLDERS)
    kind, number = {"stream": ("train.stream", 6), "flower": ("query.step", 30)}[transport]
    sent: list[str] = []

    def disturb(message: Message) -> None:
        sent.append(message.metadata.message_type)
        if sent[-1] == kind and sent.count(kind) == number:
            grid.unreachable.add(101)
        elif sent[-1] == "query.inventory":
            grid.join()  # a node does one thing at a time
            grid.unreachable.clear()

    grid.on_message = disturb
    told = usual.arguments(ADAM, ids=pseudonyms(IDS, KEY), node_timeout_s=20.0)
    strategy = SplitLearning(
        plain.Top, groups.PARTIES, **told, transport=transport, workdir=tmp_path / "run", checkpoint_every=2
    )
    result = grid.fit(strategy)
    assert sent.count("query.inventory") > len(groups.HOLDERS)  # the nodes were looked for again
    assert next(orders) > 3 * len(groups.HOLDERS)
    found = usual.weights_of(strategy, result, tmp_path, 18, groups.HOLDERS)
    assert plain.differing(found, groups.plain_loop(ADAM)) == []


@pytest.mark.parametrize("holder", u.HOLDERS)
def test_labels_at_a_party_whose_order_is_that_of_the_samples(holder: str, tmp_path: Path) -> None:
    kept = u.Kept()

    def party(name: str, context: Any) -> Any:
        side = party_with(ADAM, 1)(name, context) if name in plain.PARTIES else None
        if name != holder:
            return side
        labels = u.label_side(ADAM, ids=IDS, id_key=KEY, on_evaluated=kept)
        return labels if side is None else (side, labels)

    grid = usual.PartiesGrid(party, tmp_path / "state", u.seats(holder))
    result = grid.fit(u.over_nodes(ADAM, holder, workdir=tmp_path / "run"))
    assert plain.differing(u.node_weights(result, tmp_path, holder, kept), u.plain_loop(ADAM, holder)) == []


def test_labels_in_another_order_where_the_server_has_pseudonyms() -> None:
    order = np.random.default_rng(3).permutation(plain.NUM_SAMPLES)
    kept = u.Kept()

    def party(name: str, context: Any) -> Any:
        if name in plain.PARTIES:
            return party_with(ADAM, 2)(name, context)
        ids = [IDS[sample] for sample in order]
        return u.label_side(ADAM, labels=plain.labels()[order], ids=ids, id_key=KEY, on_evaluated=kept)

    result = fit_local(party, u.training(ADAM, "clinic", ids=pseudonyms(IDS, KEY)))
    assert plain.differing(u.local_weights(result), u.plain_loop(ADAM, "clinic")) == []
    assert np.array_equal(order[kept.rows], plain.VALID)  # the holder's own rows


def test_two_groups_by_private_ids() -> None:
    def party(name: str, context: Any) -> PartySide:
        kind = name.partition("@")[0]
        return PartySide(plain.net(kind), optimizer=ADAM, **records(kind, 1, samples=groups.held()[name]))

    told = usual.arguments(ADAM, ids=pseudonyms(IDS, KEY))
    found = weights(fit_local(party, Training(plain.Top, groups.PARTIES, **told)))
    assert plain.differing(found, groups.plain_loop(ADAM)) == []
