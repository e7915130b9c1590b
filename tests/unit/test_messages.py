"""What each message says of itself: direction, tensor, steps, answer, and whether it changes the party that gets it."""

from typing import NamedTuple, get_args

import pytest

from psl_flower.errors import NodeError, NodeLost, ProtocolError
from psl_flower.wire.messages import (
    Abort,
    Average,
    Failed,
    Finish,
    Hello,
    Keep,
    Message,
    Saved,
    Share,
    Shared,
    Smashed,
    Step,
    Welcome,
)
from psl_flower.wire.mid_step import Adapt, Adapted, Judge, Judged, Scored
from psl_flower.wire.plan import Plan, StepId, pack_samples

THIRD, FOURTH = StepId(0, 3), StepId(1, 4)
TRAIN = Plan(FOURTH, "train", 0.5, pack_samples([7, 8]), 5)
EVALUATE = Plan(StepId(0, 6, 2), "evaluate", 0.0, pack_samples([7]), 0)
HELLO = Hello("run", 7, 0, (1,), 50, "data", bytes(32))


class Is(NamedTuple):
    """What is expected of a message."""

    carries: str | None = None
    tensor_of: StepId | None = None
    answered_by: type | None = None
    answer_of: StepId | None = None
    steps_applied: int = 0
    changes_state: bool = False
    goes_up: bool = False


KINDS: dict[str, tuple[Message, Is]] = {
    "hello": (HELLO, Is(goes_up=True)),
    "welcome": (Welcome(), Is()),
    "first step": (Step(plan=TRAIN), Is("gradient", None, Smashed, FOURTH, 4, True)),
    "step": (Step(THIRD, TRAIN), Is("gradient", THIRD, Smashed, FOURTH, 3, True)),
    "last step": (Step(THIRD, save=True), Is("gradient", THIRD, Saved, THIRD, 3, True)),
    "evaluation": (Step(plan=EVALUATE), Is("gradient", None, Smashed, EVALUATE.id, 6, False)),
    "gradient and evaluation": (Step(THIRD, EVALUATE), Is("gradient", THIRD, Smashed, EVALUATE.id, 3, True)),
    "share": (Share(THIRD), Is("gradient", THIRD, Shared, THIRD, 3, True)),
    "average": (Average(THIRD, TRAIN), Is("weights", THIRD, Smashed, FOURTH, 4, True)),
    "last average": (Average(THIRD, save=True), Is("weights", THIRD, Saved, THIRD, 4, True)),
    "adapt": (Adapt(THIRD, 0.5, pack_samples([1])), Is("joined", THIRD, Adapted, THIRD, 3, True)),
    "judge": (Judge(TRAIN), Is("outputs", FOURTH, Judged, FOURTH, 4, True)),
    "judge an evaluation": (Judge(EVALUATE), Is("outputs", EVALUATE.id, Scored, EVALUATE.id, 6, False)),
    "keep": (Keep(4), Is(None, None, Saved, None, 4, False)),
    "abort": (Abort("disk full"), Is()),
    "finish": (Finish(), Is()),
    "smashed": (Smashed(THIRD, 0.5, 0.25, 2.0), Is("smashed", THIRD, None, None, 3, False, True)),
    "adapted": (Adapted(THIRD, 0.5), Is("joined gradient", THIRD, None, None, 3, False, True)),
    "judged": (Judged(THIRD, 0.5), Is("outputs gradient", THIRD, None, None, 3, False, True)),
    "scored": (Scored({"accuracy": 0.5}), Is(goes_up=True)),
    "shared": (Shared(THIRD), Is("weights", THIRD, None, None, 3, False, True)),
    "saved": (Saved(4), Is(goes_up=True)),
    "failed": (Failed("StoreError", "damaged"), Is(goes_up=True)),
}


@pytest.mark.parametrize(("message", "expected"), KINDS.values(), ids=KINDS.keys())
def test_what_a_message_says_of_itself(message: Message, expected: Is) -> None:
    assert Is(*(getattr(message, name) for name in Is._fields)) == expected
    assert message.num_tensors == (expected.tensor_of is not None)


def test_no_kind_of_message_is_left_out() -> None:
    kinds = set(get_args(Message))
    assert kinds == {type(message) for message, _ in KINDS.values()}
    # The two that may come at any moment end the exchange, and no other.
    ending = {type(message) for message, _ in KINDS.values() if message.error("peer") is not None}
    assert ending == {Failed, Abort}


def test_a_party_says_how_long_it_took() -> None:
    assert Smashed(THIRD, 0.5, 0.25, 2.0).seconds == 2.75
    assert Saved(4).seconds == 0.0


def test_the_error_that_a_message_ends_the_exchange_with() -> None:
    failed = Failed("StoreError", "damaged\x1b[2J").error("Upper 1")
    assert type(failed) is NodeError
    assert str(failed) == "Upper 1 failed: StoreError: damaged\\x1b[2J"
    assert type(Failed("PatchServerLost", "gone").error("Upper 1")) is NodeLost
    abort = Abort("disk full").error("Lower")
    assert type(abort) is ProtocolError
    assert str(abort) == "Lower ended the exchange: disk full"


def test_samples_that_a_tensor_is_of() -> None:
    assert Judge(TRAIN).num_samples == 2
    assert Smashed(THIRD).num_samples == 0
