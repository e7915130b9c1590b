"""What Lower and nodes say of themselves: strict records, and every position held once by the right Upper."""

import msgspec
import pytest

from psl_flower.errors import AlignmentError, FrameMismatch, PositionError, PositionMissing, StoreError
from psl_flower.wire.messages import Failed
from psl_flower.wire.node_messages import (
    Claim,
    Inventory,
    NodeTask,
    StreamTicket,
    check_alignment,
    check_positions,
    decode,
    encode,
)

ASSIGNMENT = (0, 1, 1, 0)


def claim(upper, *positions):
    return Claim(upper=upper, positions=positions, num_samples=5, dataset="ab")


TASK = NodeTask(
    run="r", parties=(0, 2), settings=b"\x00\xff", activations="float32", gradients="int8", timeout_s=1.5, threads=2
)
TICKET = StreamTicket(host="h", port=1, cert_pem=None, node=-(2**60), tokens={3: b"t" * 32}, step=7, saved={3: 7})
RECORDS = [TASK, TICKET, claim(1, 1, 2), Inventory(claims=(claim(0, 0),)), Failed("StoreError", "gone")]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_round_trip(record):
    assert RECORDS
    assert decode(encode(record), type(record), "node 1") == record


@pytest.mark.parametrize("part", ["../x", "ab/../x", "ab", "/ab/x", "AB/x", "ab/x/y", "ab/x\n", "ab/.", "xyz/a"])
def test_a_part_that_is_no_folder_of_a_lightening(part):
    named = msgspec.structs.replace(TASK, part="0a1b/degree-003-training")
    assert decode(encode(named), NodeTask, "the Lower") == named
    with pytest.raises(FrameMismatch, match="malformed NodeTask"):
        decode(encode(msgspec.structs.replace(TASK, part=part)), NodeTask, "the Lower")


@pytest.mark.parametrize("run", ["", "/srv/other", "../other", "a/b", ".hidden", "a\n", "x" * 129])
def test_a_run_that_is_no_folder_of_the_nodes_own(run):
    with pytest.raises(FrameMismatch, match="malformed NodeTask"):
        decode(encode(msgspec.structs.replace(TASK, run=run)), NodeTask, "the Lower")


def changed(**fields):
    values = msgspec.structs.asdict(claim(0, 0))
    values.update(fields)
    return msgspec.msgpack.encode({name: value for name, value in values.items() if value is not None})


MALFORMED = [
    (None, "expected a Claim as bytes, received NoneType"),
    ("text", "expected a Claim as bytes, received str"),
    (b"", "malformed Claim"),
    (b"\xc1", "malformed Claim"),
    (changed() + b"\x00", "malformed Claim"),
    (changed()[:-1], "malformed Claim"),
    (changed(upper=None), "missing required field `upper`"),
    (changed(colour="red"), "unknown field `colour`"),
    (changed(upper="0"), "Expected `int`, got `str`"),
    (changed(upper=True), "Expected `int`, got `bool`"),
    (changed(positions=[0, "1"]), "Expected `int`, got `str`"),
    (changed(positions=3), "Expected `array`, got `int`"),
    (msgspec.msgpack.encode([1, 2]), "Expected `object`, got `array`"),
    (b"\x91" * 100_000, "malformed Claim"),
]


@pytest.mark.parametrize(("data", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_records_are_refused_by_the_peers_name(data, message):
    assert MALFORMED
    with pytest.raises(FrameMismatch) as caught:
        decode(data, Claim, "node 7")
    assert str(caught.value).startswith("node 7: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_ticket_shows_no_token():
    assert "tttt" not in repr(TICKET)
    assert "tttt" not in str(TICKET)


def test_failures_keep_the_text():
    assert Failed.of(StoreError("no store")) == Failed("StoreError", "no store")
    # An error that is not ours may have a text that says nothing without its class.
    assert Failed.of(KeyError("x")) == Failed(kind="KeyError", message="KeyError: 'x'")


COMPLETE = [
    {"node 1": [claim(0, 0, 3)], "node 2": [claim(1, 1, 2)]},
    {"node 1": [claim(0, 0, 3), claim(1, 1, 2)]},
    {"node 1": [claim(0, 3, 0)], "node 2": [], "node 3": [claim(1, 2, 1)]},
]


@pytest.mark.parametrize("claims", COMPLETE)
def test_every_position_once(claims):
    assert COMPLETE
    check_positions(claims, ASSIGNMENT)


INCOMPLETE = [
    (
        {"node 1": [claim(0, 0, 3)], "node 2": [claim(1, 1)]},
        r"^no node holds position 2 of Upper 1 \(asked: node 1, node 2\)$",
    ),
    ({"node 1": [claim(0, 3)]}, r"^no node holds position 0, 1, 2 of Upper 0, 1 \(asked: node 1\)$"),
    ({}, r"^no node holds position 0, 1, 2, 3 of Upper 0, 1 \(asked: no node\)$"),
    (
        {"node 1": [claim(0, 0, 3)], "node 2": [claim(1, 1, 2)], "node 3": [claim(0, 3)]},
        "^node 3 holds position 3, which node 1 holds already$",
    ),
    ({"node 1": [claim(0, 0, 0)]}, "^node 1 holds position 0, which node 1 holds already$"),
    ({"node 2": [claim(1, 1, 4)]}, "^node 2 holds position 4, but the grid has 4 positions$"),
    ({"node 2": [claim(1, -1)]}, "^node 2 holds position -1, but the grid has 4 positions$"),
    ({"node 2": [claim(1, 0)]}, "^node 2 holds position 0 for Upper 1; it is assigned to Upper 0$"),
    ({"node 2": [claim(9, 0)]}, "^node 2 holds position 0 for Upper 9; it is assigned to Upper 0$"),
    # Otherwise the last node would take the Upper's place.
    (
        {"node 1": [claim(0, 0, 3)], "node 2": [claim(1, 1, 2), claim(0)]},
        "^node 2 claims Upper 0, and no position of it$",
    ),
    ({"node 1": [claim(0, 0, 3), claim(1, 1, 2), claim(-1)]}, "^node 1 claims Upper -1, and no position of it$"),
    (
        {"node 1": [claim(0, 0)], "node 2": [claim(0, 3)], "node 3": [claim(1, 2, 1)]},
        "^node 2 holds a store of Upper 0, and so does node 1$",
    ),
]


@pytest.mark.parametrize(("claims", "message"), INCOMPLETE)
def test_anything_else_is_refused(claims, message):
    assert INCOMPLETE
    with pytest.raises(PositionError, match=message):
        check_positions(claims, ASSIGNMENT)


def test_a_store_of_patches_that_names_samples_is_refused():
    """Its number of samples and its dataset would not be compared with those of the others."""
    named = msgspec.structs.replace(claim(1, 1, 2), samples=b"1")
    with pytest.raises(AlignmentError, match="node 2: its store of Upper 1 names its samples"):
        check_positions({"node 1": [claim(0, 0, 3)], "node 2": [named]}, ASSIGNMENT)


def test_the_positions_of_absent_uppers_may_be_missing():
    check_positions({"node 1": [claim(0, 0, 3)]}, ASSIGNMENT, absent={1})
    with pytest.raises(PositionError, match="no node holds position 3 of Upper 0"):
        check_positions({"node 1": [claim(0, 0)]}, ASSIGNMENT, absent={1})
    with pytest.raises(PositionError, match="node 2 holds position 0, which node 1 holds already"):
        check_positions({"node 1": [claim(0, 0, 3)], "node 2": [claim(1, 0)]}, ASSIGNMENT, absent={1})


@pytest.mark.parametrize("name", ["", "../fare", "a/b", ".hidden", "fare\n", "x" * 65])
def test_a_party_that_is_no_folder_of_the_nodes_own(name):
    named = msgspec.structs.replace(TASK, names=("fare", "family-2"))
    assert decode(encode(named), NodeTask, "the Lower") == named
    with pytest.raises(FrameMismatch, match="malformed NodeTask"):
        decode(encode(msgspec.structs.replace(TASK, names=(name,))), NodeTask, "the Lower")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 4}, "node 1 holds 5 samples, node 2 4; all must hold the same"),
        ({"dataset": "cd"}, "node 1 and node 2 hold samples of different datasets, or with different ids"),
    ],
)
def test_stores_of_other_samples(changes, words):
    """Whatever makes the engines on the nodes: their own checks may be missing where the models are others."""
    held = {"node 1": [claim(0, 0), claim(1, 1)], "node 2": [claim(2, 2)]}
    check_alignment(held)
    held["node 2"] = [msgspec.structs.replace(claim(2, 2), **changes)]
    with pytest.raises(AlignmentError, match=words):
        check_alignment(held)


def test_parties_by_name():
    names = ("person", "fare")
    check_positions({"node 1": [claim(0, 0)], "node 2": [claim(1, 1)]}, (0, 1), names=names)
    with pytest.raises(PositionMissing, match=r"no node is party 'fare' \(asked: node 1\)"):
        check_positions({"node 1": [claim(0, 0)]}, (0, 1), names=names)
    with pytest.raises(PositionError, match="node 2 and node 1 both are party 'person'; stop one of them"):
        check_positions({"node 1": [claim(0, 0)], "node 2": [claim(0, 0)]}, (0, 1), names=names)
