"""What a node does in a lightening besides training: take weights and files, quantise, and measure.

Every handler serves all Uppers of this node that the task names; see `strategies.lightening` for the other side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict

from clients.host import Host, check_lightening_allowed, check_store
from clients.messages import LOWER, content, host_of, number, some_bytes, values
from psl_flower.engine.build import Blueprint, CompressionTraining
from psl_flower.errors import FrameMismatch
from psl_flower.lightening import on_node
from psl_flower.patches.store import PatchStore
from psl_flower.wire.node_messages import Measured, encode


def ready(message: Message, context: Context) -> RecordDict:
    """Check that this node can take part: its operator allows it, and the runtime is installed."""
    for _ in _stores(host_of(message, context)):
        on_node.check_runtime()
    return content({})


def place(message: Message, context: Context) -> RecordDict:
    """Keep the weights that a training begins with."""
    host = host_of(message, context)
    blueprint = Blueprint.decode(host.task.settings)
    phase = blueprint.override
    if not isinstance(phase, CompressionTraining):
        raise FrameMismatch(f"{LOWER}: expected a training of a lightening, received none")
    for m, store in _stores(host):
        weights = _tensors(message, f"upper-{m}")
        teacher = _tensors(message, f"teacher-{m}") if phase.teacher is not None else {}
        on_node.put_in_place(blueprint, phase, store, host.checkpoints(m), weights, teacher)
    return content({})


def quantise(message: Message, context: Context) -> RecordDict:
    """Return Uppers in int8, calibrated on patches that stay here, and smashed data to calibrate the Lower on."""
    host, given = host_of(message, context), values(message)
    host.prepare_process()
    samples_B = np.frombuffer(some_bytes(given.get("samples"), "samples"), dtype="<i8")
    bits = number(given.get("bits"), "a number of bits")
    models: dict[str, bytes] = {}
    smashed: dict[str, ArrayRecord] = {}
    for m, store in _stores(host):
        made = on_node.quantise(some_bytes(given.get(f"upper-{m}"), f"a model of Upper {m}"), store, samples_B, bits)
        models[f"upper-{m}"] = made.model.SerializeToString()
        smashed[f"smashed-{m}"] = ArrayRecord({"smashed": made.smashed_NChw})
    return content(models, smashed)


def keep(message: Message, context: Context) -> RecordDict:
    """Put Uppers' files in place."""
    host, given = host_of(message, context), values(message)
    for m, _ in _stores(host):
        on_node.keep_file(host.checkpoints(m).folder, some_bytes(given.get(f"upper-{m}"), f"a file of Upper {m}"))
    return content({})


def measure(message: Message, context: Context) -> RecordDict:
    """Measure the files in place, one Upper after the other; times of several Uppers add up."""
    host, given = host_of(message, context), values(message)
    batch, threads = number(given.get("batch"), "a batch"), number(given.get("threads"), "a number of threads")
    batch_s = latency_ms = 0.0
    for m, store in _stores(host):
        speed = on_node.measure(host.checkpoints(m).folder, store, batch=batch, threads=threads)
        batch_s += batch / speed.images_per_s
        latency_ms += speed.latency_ms
    return content({"measured": encode(Measured(images_per_s=batch / batch_s, latency_ms=latency_ms))})


def _stores(host: Host) -> Iterator[tuple[int, PatchStore]]:
    if not host.task.part:
        raise FrameMismatch(f"{LOWER}: expected a part of a lightening, received none")
    check_lightening_allowed(host.context)
    description = Blueprint.decode(host.task.settings).description
    for m in host.task.parties:
        with closing(host.open_store(m)) as store:
            check_store(description, m, store)
            yield m, store


def _tensors(message: Message, name: str) -> Mapping[str, torch.Tensor]:
    record = message.content.array_records.get(name)
    if record is None:
        raise FrameMismatch(f"{LOWER}: expected the weights {name}, received none")
    return dict(record.to_torch_state_dict())
