"""Flower's own strategies that average weights, by name, with traffic counted and failures not ignored."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from psl_flower.errors import NodeError, PeerLost


@dataclass(slots=True, kw_only=True)
class RoundTotals:
    """Totals of a round's messages."""

    #: Bytes of records from and to each node so far, by Flower's node id.
    up: dict[int, int] = field(default_factory=dict)
    down: dict[int, int] = field(default_factory=dict)
    samples: int = 0  #: Images that the clients trained on in this round, each counted once for each local pass.
    steps: int = 0  #: Local steps of the client that had most of them.
    train_s: float = 0.0  #: Seconds from the first message out to the last reply.
    loss: float = 0.0  #: Mean loss of this round's local steps, weighted by the clients' images.


class StrictAveraging(FedAvg):
    """Mixin in front of one of Flower's strategies, which does the averaging."""

    traffic: RoundTotals
    statistics: Collection[str]
    _began: float
    _sent: int

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Count what goes to the clients."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._began, self._sent = time.monotonic(), len(messages)
        for message in messages:
            node = message.metadata.dst_node_id
            self.traffic.down[node] = self.traffic.down.get(node, 0) + num_bytes(message.content)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count what came back, average it, and keep dtypes and BatchNorm's statistics as they must be.

        Raises
        ------
        NodeError
            If a client failed.
        PeerLost
            If one did not answer in time. Flower would continue without either.
        """
        answers = list(replies)
        for reply in answers:
            if reply.has_error():
                reason = (reply.error.reason or "no reason given").strip().splitlines()[-1]
                raise NodeError(f"a client failed in round {server_round}: {reason}")
        if len(answers) < self._sent:
            raise PeerLost(f"round {server_round}: {len(answers)} of {self._sent} clients answered in time")
        self.traffic.train_s = time.monotonic() - self._began
        self.traffic.samples = self.traffic.steps = 0
        for reply in answers:
            node, told = reply.metadata.src_node_id, next(iter(reply.content.metric_records.values()))
            self.traffic.up[node] = self.traffic.up.get(node, 0) + num_bytes(reply.content)
            self.traffic.samples += int(_number(told["num-passed"]))
            self.traffic.steps = max(self.traffic.steps, int(_number(told["num-steps"])))
        arrays, metrics = super().aggregate_train(server_round, answers)
        assert arrays is not None and metrics is not None
        self.traffic.loss = _number(metrics["loss"])
        # An adaptive server may only move weights: it would drive variances below zero. They are averaged.
        mean = aggregate_arrayrecords([reply.content for reply in answers], self.weighted_by_key)
        kept = {
            name: _as((mean if name in self.statistics else arrays)[name], like)
            for name, like in next(iter(answers[0].content.array_records.values())).items()
        }
        return ArrayRecord(kept), metrics


class StrictFedAvg(StrictAveraging, FedAvg):
    """Weighted mean (McMahan et al., AISTATS 2017)."""


class StrictFedProx(StrictAveraging, FedProx):
    """The same, with a proximal term in the clients' loss (Li et al., MLSys 2020)."""


class StrictFedAdam(StrictAveraging, FedAdam):
    """Adam on the server, over the mean change (Reddi et al., ICLR 2021)."""


def averaging(
    name: str, *, clients: int, proximal_mu: float, server_lr: float, statistics: Collection[str]
) -> StrictAveraging:
    """Return one of Flower's strategies, "fedavg", "fedprox" or "fedadam", in which `clients` take part in every round.

    `proximal_mu` and `server_lr` are for FedProx and FedAdam; `statistics` names the arrays that are no weights.
    """
    make: dict[str, Callable[..., StrictAveraging]] = {
        "fedavg": StrictFedAvg,
        "fedprox": StrictFedProx,
        "fedadam": StrictFedAdam,
    }
    own: dict[str, dict[str, Any]] = {"fedprox": {"proximal_mu": proximal_mu}, "fedadam": {"eta": server_lr}}
    strategy = make[name](
        fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients, **own.get(name, {})
    )
    strategy.traffic, strategy.statistics = RoundTotals(), frozenset(statistics)
    return strategy


def num_bytes(content: RecordDict) -> int:
    """Return the bytes of a message's records."""
    parts = (content.array_records, content.metric_records, content.config_records)
    return sum(record.count_bytes() for records in parts for record in records.values())


def _as(averaged: Array, like: Array) -> Array:
    """Return an average in the dtype of what was averaged; counts, such as BatchNorm's of batches, are rounded."""
    values, dtype = averaged.numpy(), like.numpy().dtype
    return Array(np.asarray((values if dtype.kind == "f" else np.rint(values)).astype(dtype)))


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value
