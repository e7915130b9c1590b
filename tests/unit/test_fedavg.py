"""The baseline's settings, and what is added to Flower's strategies: counting, failures, BatchNorm's statistics."""

import tomllib

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from psl_flower.baselines.fedavg import FedAvgConfig
from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, NodeError, PeerLost
from simulations.compare.federated import FEDAVG_APP
from strategies.fedavg import averaging, num_bytes

APP = tomllib.loads((FEDAVG_APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]


def test_the_apps_settings_are_the_defaults():
    own, run = FedAvgConfig(config=RunConfig()).own_mapping(), RunConfig().to_mapping()
    assert set(own) <= set(APP["config"])
    assert APP["config"] == {key: (own | run)[key] for key in APP["config"]}
    assert FedAvgConfig.from_mapping(APP["config"]) == FedAvgConfig(config=RunConfig())


def test_the_apps_components_are_there():
    for reference in APP["components"].values():
        module, _, name = reference.partition(":")
        assert hasattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "krum"}, "expected one of fedavg, fedprox, fedadam"),
        ({"partition": "sorted"}, "expected one of iid, dirichlet"),
        ({"local-epochs": 0}, "local-epochs: expected a number at least 1"),
        ({"dirichlet-alpha": 0}, "dirichlet-alpha: expected a number above 0"),
        ({"clients": -1}, "clients: expected a number at least 0"),
        ({"clients": True}, "clients: expected a whole number"),
        ({"proximal-mu": float("nan")}, "proximal-mu"),
        ({"colour": "red"}, "unknown setting colour"),
    ],
)
def test_settings_that_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        FedAvgConfig.from_mapping(values)


class TwoNodes:
    """What a strategy asks of Flower's Grid."""

    def get_node_ids(self):
        return [11, 12]


def arrays(weight, variance):
    return ArrayRecord({"w": Array(np.float32([weight])), "var": Array(np.float32([variance]))})


def answer(message, weight, variance, images):
    metrics = MetricRecord(
        {"num-examples": images, "num-passed": 2 * images, "num-steps": images // 5, "loss": 0.5 * images}
    )
    return Message(RecordDict({"arrays": arrays(weight, variance), "metrics": metrics}), reply_to=message)


@pytest.fixture(autouse=True)
def identity():
    # As Flower's executor does before it calls an app.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def begun(name):
    strategy = averaging(name, clients=2, proximal_mu=0.3, server_lr=0.1, statistics=["var"])
    sent = list(strategy.configure_train(1, arrays(1.0, 4.0), ConfigRecord({"settings": b"12345"}), TwoNodes()))
    assert {message.metadata.dst_node_id for message in sent} == {11, 12}
    return strategy, sent


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_mean_is_weighted_by_images(name):
    strategy, sent = begun(name)
    told = sent[0].content.config_records["config"]
    assert told.get("proximal-mu") == (0.3 if name == "fedprox" else None)
    mean, metrics = strategy.aggregate_train(1, [answer(sent[0], 2.0, 1.0, 30), answer(sent[1], 6.0, 5.0, 10)])
    assert {key: mean[key].numpy().tolist() for key in mean} == {"w": [3.0], "var": [2.0]}
    assert mean["w"].numpy().dtype == np.float32
    assert strategy.traffic.loss == metrics["loss"] == (15 * 30 + 5 * 10) / 40
    assert (strategy.traffic.samples, strategy.traffic.steps) == (80, 6)


def test_an_adaptive_server_moves_weights_and_leaves_statistics_to_the_mean():
    strategy, sent = begun("fedadam")
    found, _ = strategy.aggregate_train(1, [answer(sent[0], 1.1, 1.0, 10), answer(sent[1], 1.1, 3.0, 10)])
    assert found["var"].numpy().tolist() == [2.0]
    # Adam's first step has about the size of its learning rate, whatever the change.
    assert 1.05 < float(found["w"].numpy()[0]) < 1.25
    assert found["w"].numpy().dtype == np.float32


def test_bytes_are_those_of_the_records():
    strategy, sent = begun("fedavg")
    one = num_bytes(sent[0].content)
    # Two arrays of one float each, with their headers, the settings and the round.
    assert 8 + 5 < one < 500
    assert strategy.traffic.down == {11: one, 12: one}
    replies = [answer(sent[0], 1.0, 1.0, 10), answer(sent[1], 1.0, 1.0, 10)]
    strategy.aggregate_train(1, replies)
    up = {reply.metadata.src_node_id: num_bytes(reply.content) for reply in replies}
    assert strategy.traffic.up == up


def test_failures_are_not_averaged_away():
    strategy, sent = begun("fedavg")
    failed = Message(Error(2, "Traceback\nValueError: no images (DataError)"), reply_to=sent[1])
    with pytest.raises(NodeError, match=r"round 1: ValueError: no images \(DataError\)"):
        strategy.aggregate_train(1, [answer(sent[0], 1.0, 1.0, 10), failed])
    with pytest.raises(PeerLost, match="1 of 2 clients answered"):
        strategy.aggregate_train(1, [answer(sent[0], 1.0, 1.0, 10)])
