"""A node's handlers in a lightening other than training: they receive weights and files, quantise, and measure.

Every handler serves all Uppers of this node that the task names; see `strategies.lightening` for the other side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from clients.asked import Asked, Handler
from clients.host import Host, check_lightening_allowed, check_store
from psl_flower.engine.build import Blueprint, CompressionTraining
from psl_flower.errors import FrameMismatch
from psl_flower.flower.answering import LOWER
from psl_flower.lightening import on_node
from psl_flower.patches.store import PatchStore
from psl_flower.wire import questions
from psl_flower.wire.node_messages import Measured
from psl_flower.wire.plan import unpack_samples
from psl_flower.wire.questions import Parcel, Question, Tensors


def ready(asked: Asked[questions.LightenReady]) -> Parcel:
    """Check that this node can take part: its operator allows it, and the runtime is installed."""
    for _ in _stores(asked.host()):
        on_node.check_runtime()
    return Parcel()


def place(asked: Asked[questions.LightenPlace]) -> Parcel:
    """Keep the weights that a training begins with."""
    host = asked.host()
    blueprint = Blueprint.decode(host.task.settings)
    training = blueprint.override
    if not isinstance(training, CompressionTraining):
        raise FrameMismatch(f"{LOWER}: expected a training of a lightening, received none")
    for m, store in _stores(host):
        weights = asked.received.tensors("upper", m)
        teacher = asked.received.tensors("teacher", m) if training.teacher is not None else {}
        on_node.put_in_place(blueprint, training, store, host.checkpoints(m), weights, teacher)
    return Parcel()


def quantise(asked: Asked[questions.LightenQuantise]) -> Parcel:
    """Return Uppers in int8, calibrated on patches that stay here, and smashed data to calibrate the Lower on."""
    host = asked.host()
    host.prepare_process()
    blueprint = Blueprint.decode(host.task.settings)
    samples_B = unpack_samples(asked.question.samples)
    models: dict[int, bytes] = {}
    smashed: dict[int, Tensors] = {}
    for m, store in _stores(host):
        made = on_node.quantise(asked.received.part(m), blueprint, store, samples_B, asked.question.bits)
        models[m], smashed[m] = made.model.SerializeToString(), {"smashed": made.smashed_NChw}
    return Parcel(parts=models, tensors={"smashed": smashed})


def keep(asked: Asked[questions.LightenKeep]) -> Parcel:
    """Put Uppers' files in place."""
    host = asked.host()
    for m, _ in _stores(host):
        on_node.keep_file(host.checkpoints(m).folder, asked.received.part(m))
    return Parcel()


def measure(asked: Asked[questions.LightenMeasure]) -> Parcel:
    """Measure the files in place, one Upper after the other; times of several Uppers add up."""
    host, batch, threads = asked.host(), asked.question.batch, asked.question.threads
    blueprint = Blueprint.decode(host.task.settings)
    speeds = [
        on_node.measure(host.checkpoints(m).folder, blueprint, store, batch=batch, threads=threads)
        for m, store in _stores(host)
    ]
    batch_s = sum(batch / speed.images_per_s for speed in speeds)
    latency_ms = sum(speed.latency_ms for speed in speeds)
    return Parcel(
        Measured(
            images_per_s=batch / batch_s,
            latency_ms=latency_ms,
            images_per_s_spread=sum(s.images_per_s_spread * batch / s.images_per_s for s in speeds) / batch_s,
            latency_spread=sum(s.latency_spread * s.latency_ms for s in speeds) / latency_ms,
        )
    )


HANDLERS: dict[type[Question], Handler] = {
    questions.LightenReady: ready,
    questions.LightenPlace: place,
    questions.LightenQuantise: quantise,
    questions.LightenKeep: keep,
    questions.LightenMeasure: measure,
}


def _stores(host: Host) -> Iterator[tuple[int, PatchStore]]:
    if not host.task.part:
        raise FrameMismatch(f"{LOWER}: expected a part of a lightening, received none")
    check_lightening_allowed(host.context)
    description = Blueprint.decode(host.task.settings).description
    for m in host.task.parties:
        with closing(host.open_store(m)) as store:
            check_store(description, m, store)
            yield m, store
