"""Labels at a party: bit-equal to plain PyTorch in one process and over nodes, killed, resumed; the server has no label."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from psl_flower.engine.streams import StreamExchange, serve
from psl_flower.errors import ConfigError, RunError, TrainingError
from psl_flower.split import EarlyStopping, LabelSide, LocalResult, PartySide, fit_local
from psl_flower.split.engines import SideEngine
from psl_flower.split.folder import TrainingFolder
from psl_flower.split.labels import LabelEngine
from psl_flower.split.local import settings_of, wire_format
from psl_flower.split.roster import engine_at
from psl_flower.split.session import Session
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import frame_nbytes
from psl_flower.wire.messages import Finish, Hello
from psl_flower.wire.stream import connect
from tests import parties_in_process as usual
from tests import plain_split as plain
from tests import plain_u_shape as u
from tests.authority import Authority
from tests.parties_in_process import PartiesGrid

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

ADAM = torch.optim.Adam


def local(holder: str, optimizer: Any = ADAM, side: Any = None, **changes: Any) -> LocalResult:
    return fit_local(u.party_with(optimizer, holder, **(side or {})), u.training(optimizer, holder, **changes))


def accuracy(expected: dict[str, torch.Tensor]) -> float:
    return plain.accuracy(expected["outputs"], plain.labels()[plain.VALID])


@pytest.mark.parametrize("holder", u.HOLDERS)
@pytest.mark.parametrize("name", plain.OPTIMIZERS)
def test_fit_local_is_a_plain_loop(name: str, holder: str) -> None:
    assert u.HOLDERS
    optimizer, kept = plain.OPTIMIZERS[name], u.Kept()
    result = local(holder, optimizer, {"on_evaluated": kept})
    found, expected = u.local_weights(result), u.plain_loop(optimizer, holder)
    assert plain.differing(found, expected) == []
    assert [record["round"] for record in result.rounds] == [1, 2, 3]
    assert result.rounds[-1]["accuracy"] == accuracy(expected)
    assert result.rounds[-1]["valid_loss"] == float(plain.bce(expected["outputs"], plain.labels()[plain.VALID]))
    assert np.array_equal(kept.rows, plain.VALID)
    assert torch.equal(kept.outputs, expected["outputs"])
    # A step fewer, other masks in dropout, or a head that does not learn would be seen.
    assert plain.differing(found, u.plain_loop(optimizer, holder, steps=17)) != []
    assert plain.differing(found, u.plain_loop(optimizer, holder, dropout=False)) != []
    assert plain.differing(found, u.plain_loop(optimizer, holder, head_learns=False)) != []


@pytest.mark.parametrize("steps", [0, 4])
def test_an_interrupted_training_goes_on_exactly(steps: int, tmp_path: Path) -> None:
    """The head, ahead of the commit by some steps, goes back to it."""

    def fail(record: Any) -> None:
        if record["event"] == "step" and record["step"] == 9:
            raise RuntimeError("power cut")

    options = {"workdir": tmp_path / "run", "checkpoint_every": steps}
    with pytest.raises(Exception, match="power cut"):
        local("clinic", callbacks=[fail], **options)
    told: list[Any] = []
    result = local("clinic", callbacks=[told.append], **options)
    assert told[0]["step"] == (9 if steps else 7)
    assert plain.differing(u.local_weights(result), u.plain_loop(ADAM, "clinic")) == []


@pytest.mark.parametrize("holder", u.HOLDERS)
@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_nodes_are_a_plain_loop(transport: str, holder: str, tmp_path: Path) -> None:
    kept = u.Kept()
    grid = PartiesGrid(u.party_with(ADAM, holder, on_evaluated=kept), tmp_path / "state", u.seats(holder))
    strategy = u.over_nodes(ADAM, holder, transport=transport, workdir=tmp_path / "run")
    result = grid.fit(strategy)
    found, expected = u.node_weights(result, tmp_path, holder, kept), u.plain_loop(ADAM, holder)
    assert plain.differing(found, expected) == []
    assert sorted(result.train_metrics_clientapp) == sorted(result.evaluate_metrics_serverapp) == [1, 2, 3]
    assert result.evaluate_metrics_serverapp[3]["accuracy"] == accuracy(expected)
    # What goes to the holder and comes back is counted, to the byte; a stream says at the end of a round that it is over.
    parties = len(plain.PARTIES) + 1
    over = frame_nbytes(Finish()) * parties if transport == "stream" else 0
    for told in local(holder, workdir=tmp_path / "local").rounds:
        metrics = result.train_metrics_clientapp[told["round"]]
        assert metrics["bytes_up"] == told["bytes_up"]
        assert metrics["bytes_down"] == told["bytes_down"] + told["round"] * over


def test_two_streams_of_a_node_under_tls(tmp_path: Path) -> None:
    """The holder's node waits on both at once, which TLS's own buffers must not hide anything from."""
    cert, key = Authority(tmp_path).issue("lower")
    kept = u.Kept()
    grid = PartiesGrid(u.party_with(ADAM, "family", on_evaluated=kept), tmp_path / "state")
    options = {"exchange_cert": str(cert), "exchange_key": str(key), "workdir": tmp_path / "run", "checkpoint_every": 1}
    result = grid.fit(u.over_nodes(ADAM, "family", **options))
    assert plain.differing(u.node_weights(result, tmp_path, "family", kept), u.plain_loop(ADAM, "family")) == []


@pytest.mark.parametrize("holder", u.HOLDERS)
def test_all_parties_on_one_node(holder: str, tmp_path: Path) -> None:
    """As in a simulation with one slot: four streams of which one has no place in the order of the others."""
    training = u.training(ADAM, holder, checkpoint_every=1)
    folder, roster, party = TrainingFolder(tmp_path), training.roster, u.party_with(ADAM, holder)
    driver = Session(training, folder).driver
    brings = {m: roster.brought(party, name, None, training.seed) for m, name in enumerate(roster.names)}
    settings, wire = settings_of(training, driver.lower), wire_format(training)
    engines = {
        m: engine_at(m, roster, each, settings, roster.checkpoints(folder.parties, m)) for m, each in brings.items()
    }

    def node(endpoint: ExchangeEndpoint) -> None:
        with contextlib.ExitStack() as opened:
            streams = {}
            for m, engine in engines.items():
                held = (engine.claim.positions, engine.claim.num_samples, engine.claim.dataset)
                hello = Hello("run", 7, m, *held, endpoint.issue_ticket(m, 7, *held))
                stream = connect(endpoint.host, endpoint.port, hello, cafile_pem=None, timeout_s=60)
                streams[m] = (engine, opened.enter_context(stream))
            serve(streams, wire, 60)

    with ExchangeEndpoint("127.0.0.1", run="run") as endpoint, ThreadPoolExecutor(1) as pool:
        exchange = StreamExchange(endpoint, wire, 60)
        for stop_step in (6, 12, 18):
            served = pool.submit(node, endpoint)
            endpoint.wait_for(engines, 60)
            driver.run(exchange, stop_step, evaluate=True)
            exchange.finish(engines)
            served.result(60)
    *sides, judge = engines.values()
    nets = {name: side.model for name, side in zip(plain.PARTIES, sides, strict=True) if isinstance(side, SideEngine)}
    assert isinstance(judge, LabelEngine)
    assert isinstance(judge.outputs, torch.Tensor)
    found = u.snapshot(nets, driver.lower.lower, judge.head) | {"outputs": judge.outputs}
    assert plain.differing(found, u.plain_loop(ADAM, holder)) == []


@pytest.mark.parametrize("gone", ["clinic", "fare"])
@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_node_dies_and_comes_back(transport: str, gone: str, tmp_path: Path) -> None:
    kept, names = u.Kept(), u.seats("clinic")
    grid = PartiesGrid(u.party_with(ADAM, "clinic", on_evaluated=kept), tmp_path / "state", names)
    node = 100 + names.index(gone)
    kind, number = {"stream": ("train.stream", 6), "flower": ("query.step", 45)}[transport]
    sent: list[str] = []

    def disturb(message: Message) -> None:
        sent.append(message.metadata.message_type)
        if sent[-1] == kind and sent.count(kind) == number:
            grid.unreachable.add(node)
        elif sent[-1] == "query.inventory":
            grid.unreachable.clear()

    grid.on_message = disturb
    strategy = u.over_nodes(ADAM, "clinic", transport=transport, workdir=tmp_path / "run", checkpoint_every=2)
    result = grid.fit(strategy)
    assert sent.count("query.inventory") > 4  # the nodes were looked for again
    assert plain.differing(u.node_weights(result, tmp_path, "clinic", kept), u.plain_loop(ADAM, "clinic")) == []


@pytest.mark.parametrize("transports", [("stream", "flower"), ("flower", "stream")])
def test_resumed_on_the_other_transport(transports: tuple[str, str], tmp_path: Path) -> None:
    kept = u.Kept()
    grid = PartiesGrid(u.party_with(ADAM, "family", on_evaluated=kept), tmp_path / "state")

    def fail(record: Any) -> None:
        if (record["event"], record["step"]) == ("step", 9):
            raise RuntimeError("power cut")

    with pytest.raises(Exception, match="power cut"):
        grid.fit(u.over_nodes(ADAM, "family", transport=transports[0], workdir=tmp_path / "run", callbacks=[fail]))
    told: list[Any] = []
    strategy = u.over_nodes(ADAM, "family", transport=transports[1], workdir=tmp_path / "run", callbacks=[told.append])
    result = grid.fit(strategy)
    assert told[0]["step"] == 7
    assert plain.differing(u.node_weights(result, tmp_path, "family", kept), u.plain_loop(ADAM, "family")) == []
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]


def test_rounded_on_the_wire_as_in_one_process(tmp_path: Path) -> None:
    codecs, kept = {"wire_activations": "bfloat16", "wire_gradients": "int8"}, u.Kept()
    grid = PartiesGrid(u.party_with(ADAM, "clinic", on_evaluated=kept), tmp_path, u.seats("clinic"))
    result = grid.fit(u.over_nodes(ADAM, "clinic", workdir=tmp_path / "run", **codecs))
    found = u.node_weights(result, tmp_path, "clinic", kept)
    one = fit_local(u.party_with(ADAM, "clinic"), u.over_nodes(ADAM, "clinic", **codecs))
    assert plain.differing(found, u.local_weights(one)) == []
    assert plain.differing(found, u.plain_loop(ADAM, "clinic")) != []


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize("step", [9, 18])
def test_predictions_stay_with_the_holder(transport: str, step: int, tmp_path: Path) -> None:
    """After the last step, or amid a round; nothing moves by it, and the training can go on."""
    kept, options = u.Kept(), {"transport": transport, "workdir": tmp_path / "run", "checkpoint_every": 3}
    grid = PartiesGrid(u.party_with(ADAM, "clinic", on_evaluated=kept), tmp_path / "state", u.seats("clinic"))

    def fail(record: Any) -> None:
        if (record["event"], record["step"]) == ("step", 10) and step == 9:
            raise RuntimeError("power cut")

    with contextlib.suppress(TrainingError):
        grid.fit(u.over_nodes(ADAM, "clinic", callbacks=[fail], **options))
    grid.begin()
    assert u.over_nodes(ADAM, "clinic", **options).predict(grid, [50, 3, 7]) is None
    grid.join()
    nets, top, head = u.loaded(u.plain_loop(ADAM, "clinic", steps=step), "clinic")
    with torch.no_grad():
        expected = head(top(*(net(plain.columns()[name][[50, 3, 7]]) for name, net in nets.items())))
    assert kept.rows.tolist() == [50, 3, 7]
    assert torch.equal(kept.outputs, expected)
    if step == 9:
        result = grid.fit(u.over_nodes(ADAM, "clinic", **options))
        assert plain.differing(u.node_weights(result, tmp_path, "clinic", kept), u.plain_loop(ADAM, "clinic")) == []


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_predictions_where_the_server_has_the_labels(transport: str, tmp_path: Path) -> None:
    grid = PartiesGrid(usual.party_with(ADAM), tmp_path / "state")
    strategy = usual.over_nodes(transport=transport, workdir=tmp_path / "run")
    with pytest.raises(RunError, match="nothing has been trained there; call fit first"):
        strategy.predict(grid, [1])
    grid.fit(strategy)
    with pytest.raises(ConfigError, match="samples: a sample is outside the 60 that have labels"):
        strategy.predict(grid, [60])
    grid.begin()
    outputs = strategy.predict(grid, plain.VALID)
    grid.join()
    assert torch.equal(outputs, plain.plain_loop(ADAM)["outputs"])


class TwoTensors(nn.Module):
    """Returns a number, and a matrix, for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.many = nn.Linear(20, 1), nn.Linear(20, 6)

    def forward(self, *outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joined = torch.cat([part.flatten(1) for part in outputs], 1)
        return self.one(joined).squeeze(1), self.many(joined).unflatten(1, (2, 3))


class OfTwo(nn.Module):
    def forward(self, number: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return number + (matrix * WEIGHTS).sum((1, 2))


WEIGHTS = torch.arange(6.0).reshape(2, 3) / 7


def test_several_tensors_and_a_head_without_weights() -> None:
    """The same as a server that has the labels, and whose model sums by itself."""

    class Summed(TwoTensors):
        def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
            number, matrix = super().forward(*outputs)
            return number + (matrix * WEIGHTS).sum((1, 2))

    result = local("clinic", side={"head": OfTwo()}, top=TwoTensors)
    usual = {"labels": plain.labels(), "loss": plain.bce, "metrics": {"accuracy": plain.accuracy}}

    def sides(name: str, context: Any) -> PartySide:
        return PartySide(plain.net(name), plain.columns()[name], ADAM)

    whole = fit_local(sides, u.training(ADAM, "clinic", top=Summed, **usual))
    expected = plain.snapshot(whole.nets, whole.top) | {"outputs": whole.outputs}
    assert plain.differing(plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}, expected) == []
    assert [record["accuracy"] for record in result.rounds] == [record["accuracy"] for record in whole.rounds]


def test_one_number_for_a_sample() -> None:
    class Logit(plain.Top):
        pass

    result = local("clinic", side={"head": nn.Identity()}, top=Logit)
    expected = plain.plain_loop(ADAM)
    assert plain.differing(plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}, expected) == []


def test_a_head_in_batches_of_the_evaluation() -> None:
    sizes: list[int] = []

    class Noting(u.Head):
        def forward(self, joined: torch.Tensor) -> torch.Tensor:
            sizes.append(len(joined))
            return super().forward(joined)

    local("clinic", side={"head": Noting()}, evaluate_batch_size=6, epochs=1)
    assert sizes[-3:] == [6, 6, 5]


def test_early_stopping_by_what_the_holder_reports(tmp_path: Path) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    side = {"metrics": {"falling": lambda outputs, targets: next(losses)}}
    for _ in range(2):
        stopping = EarlyStopping("falling", patience=2, mode="min")
        rounds = local("clinic", side=side, epochs=9, callbacks=[stopping], workdir=tmp_path).rounds
        assert [record["falling"] for record in rounds] == [3.0, 2.0, 2.5, 2.4]


def test_rows_of_labels_are_matched_by_id() -> None:
    """Parties, holder and server give the ids in orders of their own; so do rows that the holder is told."""
    names = [f"patient-{(7 * i) % 60:02d}" for i in range(60)]
    orders = {
        name: np.random.default_rng(i).permutation(60) for i, name in enumerate([*plain.PARTIES, "clinic", "server"])
    }
    kept = u.Kept()

    def party(name: str, context: Any) -> PartySide | LabelSide:
        order = orders[name] if shuffled else np.arange(60)
        rows, ids = torch.from_numpy(order), [names[i] for i in order]
        if name == "clinic":
            return u.label_side(ADAM, labels=plain.labels()[rows], ids=ids, on_evaluated=kept)
        return PartySide(plain.net(name), plain.columns()[name][rows], ADAM, ids=ids)

    found = []
    for shuffled in (True, False):
        order = orders["server"] if shuffled else np.arange(60)
        place = np.argsort(order)
        made = u.training(
            ADAM, "clinic", ids=[names[i] for i in order], train=place[plain.TRAIN], valid=place[plain.VALID]
        )
        found.append(u.local_weights(fit_local(party, made)))
        own = orders["clinic"] if shuffled else np.arange(60)
        assert np.array_equal(own[kept.rows], plain.VALID)
    assert plain.differing(*found) == []
