"""Questions and answers as they travel in Flower messages: through Flower's own records, and refused where malformed."""

from __future__ import annotations

import msgspec
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients import lightening
from clients.upper_app import _HANDLERS, app
from psl_flower.errors import FrameMismatch
from psl_flower.flower.messages import message
from psl_flower.wire import questions
from psl_flower.wire.messages import Failed
from psl_flower.wire.node_messages import Inventory, Measured, NodeTask, StreamTicket
from psl_flower.wire.questions import CONFIG_RECORD, Parcel, Question, Received, TaskQuestion

TASK = NodeTask(run="r", parties=(0, 2), settings=b"\x00\xff", activations="float32", gradients="int8", timeout_s=1.5)
TICKET = StreamTicket(host="h", port=1, cert_pem=None, node=7, tokens={3: b"t" * 32}, step=7, saved={3: 7})
QUESTIONS: list[Question] = [
    questions.AskInventory(),
    questions.AskClaims(task=TASK),
    questions.OpenStreams(task=TASK, ticket=TICKET),
    questions.TakeStep(task=TASK, step=4, saved={0: 3}),
    questions.GiveWeights(task=TASK, saved={0: 4, 2: 4}),
    questions.SealForRestorers(task=TASK, request=b"signed"),
    questions.PlaceUppers(task=TASK),
    questions.SmashImages(task=TASK, saved={0: 4, 2: 4}),
    questions.LightenReady(task=TASK),
    questions.LightenPlace(task=TASK),
    questions.LightenQuantise(task=TASK, samples=bytes(16), bits=7),
    questions.LightenKeep(task=TASK),
    questions.LightenMeasure(task=TASK, batch=2, threads=1),
]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in a run, as Flower's executor says before it calls an app; messages carry it."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_every_question_has_a_handler_and_an_example_here() -> None:
    kinds = {kind for kind in vars(questions).values() if isinstance(kind, type) and issubclass(kind, Question)}
    kinds -= {Question, TaskQuestion}
    assert kinds == {type(question) for question in QUESTIONS}
    assert kinds == {*_HANDLERS, *lightening.HANDLERS}
    assert app._registered_funcs.keys() == {question.kind for question in QUESTIONS}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: type(question).__name__)
def test_a_question_arrives_as_it_was_asked(question: Question) -> None:
    state = {"w": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}
    asked = message(7, question, {0: b"zero", 2: b""}, {"upper": {2: state}})
    assert (asked.metadata.dst_node_id, asked.metadata.message_type) == (7, question.kind)
    received = Received(asked.content, "the Lower")
    assert received.record(type(question)) == question
    assert received.failure() is None
    assert (received.part(0), received.part(2)) == (b"zero", b"")
    found = received.tensors("upper", 2)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)


def reply(parcel: Parcel) -> Received:
    return Received(RecordDict({CONFIG_RECORD: ConfigRecord({**parcel.values()})}), "node 7")


def test_a_ragged_list_of_samples_is_refused() -> None:
    packed = msgspec.msgpack.encode({"task": TASK, "samples": bytes(15), "bits": 7})
    received = Received(RecordDict({CONFIG_RECORD: ConfigRecord({"record": packed})}), "the Lower")
    with pytest.raises(FrameMismatch, match="the Lower: malformed LightenQuantise: samples: expected 8 bytes each"):
        received.record(questions.LightenQuantise)


def test_a_failure_comes_in_place_of_a_record() -> None:
    received = reply(Parcel(Failed("StoreError", "damaged")))
    assert received.failure() == Failed("StoreError", "damaged")
    with pytest.raises(FrameMismatch, match="node 7: expected a Inventory as bytes, received NoneType"):
        received.record(Inventory)


def test_what_is_missing_or_of_another_kind_is_refused_by_the_peers_name() -> None:
    received = reply(Parcel(Measured(images_per_s=1.0, latency_ms=2.0), {1: b"one"}))
    with pytest.raises(FrameMismatch, match="node 7: malformed Inventory"):
        received.record(Inventory)
    with pytest.raises(FrameMismatch, match="node 7: expected bytes for Upper 0, received NoneType"):
        received.part(0)
    with pytest.raises(FrameMismatch, match="node 7: expected tensors 'upper' for Upper 1, received none"):
        received.tensors("upper", 1)
    number = Received(RecordDict({CONFIG_RECORD: ConfigRecord({"party-1": 5})}), "node 7")
    with pytest.raises(FrameMismatch, match="node 7: expected bytes for Upper 1, received int"):
        number.part(1)
    # A record of that name, but of another class.
    array = Received(RecordDict({CONFIG_RECORD: ArrayRecord({"w": torch.zeros(1)})}), "node 7")
    with pytest.raises(FrameMismatch, match="node 7: expected a Inventory as bytes, received NoneType"):
        array.record(Inventory)


@pytest.mark.parametrize("content", [RecordDict(), None], ids=["empty", "none"])
def test_a_message_of_nothing(content: RecordDict | None) -> None:
    received = Received(content, "node 7")
    assert received.failure() is None
    with pytest.raises(FrameMismatch, match="received NoneType"):
        received.record(Inventory)


def test_a_task_names_the_parties_of_its_node() -> None:
    assert TASK.hosting([5]) == NodeTask(
        run="r", parties=(5,), settings=b"\x00\xff", activations="float32", gradients="int8", timeout_s=1.5
    )


def test_a_question_that_cannot_be_read_is_answered_with_a_failure() -> None:
    asked = message(7, questions.GiveWeights(task=TASK, saved={0: 4, 2: 4}))
    asked.content.config_records[CONFIG_RECORD]["record"] = b"\xc1"
    answer: Message = app._registered_funcs["query.collect"](asked, None)  # type: ignore[arg-type]
    told = Received(answer.content, "node 7").failure()
    assert told is not None
    assert told.kind == "FrameMismatch"
    assert told.message.startswith("the Lower: malformed GiveWeights")
