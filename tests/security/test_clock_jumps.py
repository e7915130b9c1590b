"""Clocks that are set while streams are open, and clocks that are wrong: training goes on, and what expires is refused.

The processes are real ones with a clock of their own (libfaketime, see `tests.security.other_clock`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from cryptography.x509.oid import ExtendedKeyUsageOID

from psl_flower.sealed import authorisation
from psl_flower.wire.credentials import node_tls
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Hello, Smashed, Step
from psl_flower.wire.plan import StepId
from psl_flower.wire.stream import connect
from psl_flower.wire.tls import ephemeral_identity
from tests.authority import DAY, NOW, Authority
from tests.security.other_clock import Party
from tests.vectors.sealed_support import ArraySource, World

HOUR = 3600.0
# By how much, and what the clock then shows.
JUMPS = {"+5h": 5 * HOUR, "-7h": -7 * HOUR, "+3d": 72 * HOUR, "-1d": -24 * HOUR, "+400d": 9600 * HOUR, "+0": 0.0}
EXPECT = Expectation(Smashed, "float32", (2, 3), StepId(0, 0))
MakeParty = Callable[[str], Party]


@pytest.fixture
def party(tmp_path: Path) -> Iterator[MakeParty]:
    with ExitStack() as stack:

        def make(role: str) -> Party:
            made = Party(role, tmp_path / role)
            stack.callback(made.close)
            return made

        yield make


def shows(answer: dict[str, float], offset_s: float) -> bool:
    """Return whether an answer is by a clock that is so wrong."""
    return abs(answer["time"] - time.time() - offset_s) < 120


def test_a_nodes_clock_jumps_during_a_round(party: MakeParty) -> None:
    node = party("node")
    with ExchangeEndpoint("127.0.0.1", run="run", tls=ephemeral_identity(["127.0.0.1"])) as endpoint:
        token = endpoint.issue_ticket(0, 7, (0,), 50, "data").hex()
        answer = node.ask(what="connect", upper=0, token=token, port=endpoint.port, cert=endpoint.cert_pem)
        assert "error" not in answer and shows(answer, 0)
        endpoint.wait_for([0], timeout_s=10)
        for offset, offset_s in JUMPS.items():
            node.tell(what="serve")
            node.set_clock(offset)  # while it waits for the step
            began = time.monotonic()
            answers = endpoint.exchange({0: Frame(Step())}, {0: EXPECT}, timeout_s=20)
            assert torch.equal(answers[0].tensor, torch.ones(2, 3))
            assert time.monotonic() - began < 10
            node.answer()
            node.tell(what="serve")
            endpoint.exchange({0: Frame(Step())}, {0: EXPECT}, timeout_s=20)
            assert shows(node.answer(), offset_s), offset


def test_the_lowers_clock_jumps_during_a_round(party: MakeParty) -> None:
    lower = party("lower")
    opened = lower.ask(what="open", tls={})["result"]
    for upper, (offset, offset_s) in enumerate(JUMPS.items()):
        token = bytes.fromhex(lower.ask(what="ticket", upper=upper)["result"])
        hello = Hello("run", 7, upper, (0,), 50, "data", token)
        with connect("127.0.0.1", opened["port"], hello, cafile_pem=opened["cert"], timeout_s=10) as stream:
            lower.tell(what="exchange", upper=upper)
            stream.receive(Expectation(Step), timeout_s=20)
            lower.set_clock(offset)  # while it waits for the node
            time.sleep(0.2)
            stream.send(Smashed(StepId(0, 0)), [torch.ones(2, 3)], timeout_s=20)
            assert "error" not in lower.answer()
            lower.tell(what="exchange", upper=upper)
            stream.receive(Expectation(Step), timeout_s=20)
            stream.send(Smashed(StepId(0, 0)), [torch.ones(2, 3)], timeout_s=20)
            answer = lower.answer()
            assert "error" not in answer and shows(answer, offset_s), offset


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        ("-20h", ""),
        ("+6d", ""),
        ("-25h", "it is not valid yet: set both machines' clocks"),
        ("+8d", "it has expired: renew it where it is served, and check both machines' clocks"),
    ],
)
def test_a_node_with_a_wrong_clock_and_the_certificate_of_a_run(party: MakeParty, offset: str, words: str) -> None:
    """It is valid from a day before it was made, for a week; beyond that the error names the clocks."""
    node = party("node")
    node.set_clock(offset)
    with ExchangeEndpoint("127.0.0.1", run="run", tls=ephemeral_identity(["127.0.0.1"])) as endpoint:
        token = endpoint.issue_ticket(0, 7, (0,), 50, "data").hex()
        answer = node.ask(what="connect", upper=0, token=token, port=endpoint.port, cert=endpoint.cert_pem)
        assert ("error" in answer) == bool(words)
        assert words in answer.get("error", "")
        if words:
            assert answer["error"].startswith("AuthenticationError: ") and "UTC, it is " in answer["error"]
            node.set_clock("+0")  # set right, it gets in with the same ticket
            assert "error" not in node.ask(
                what="connect", upper=0, token=token, port=endpoint.port, cert=endpoint.cert_pem
            )


def test_a_lower_with_a_wrong_clock_and_a_nodes_certificate(party: MakeParty, tmp_path: Path) -> None:
    """With mutual TLS; what had expired is not good because the Lower's clock is set back, but to that clock."""
    authority, lower = Authority(tmp_path), party("lower")
    cert, key = authority.issue("node", end=NOW + 30 * DAY, usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    own = node_tls(cert=str(cert), key=str(key))
    opened = lower.ask(what="open", tls={"client_ca": str(authority.path)})["result"]

    def enter() -> str:
        hello = Hello("run", 7, 0, (0,), 50, "data", bytes.fromhex(lower.ask(what="ticket", upper=0)["result"]))
        try:
            connect("127.0.0.1", opened["port"], hello, cafile_pem=opened["cert"], timeout_s=10, own=own).close()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "let in"

    assert enter() == "let in"
    for offset, words in {
        "+31d": "it has expired, or a clock is wrong",
        "-2d": "not valid for this, or not yet",
    }.items():
        lower.set_clock(offset)
        said = enter()
        assert said.startswith("AuthenticationError") and words in said
    lower.set_clock("+0")
    assert enter() == "let in"


def test_an_authorisation_and_the_clocks_of_restorers_and_nodes(party: MakeParty, tmp_path: Path) -> None:
    world, node = World(tmp_path / "sealed"), party("reader")
    world.seal(ArraySource(6, 2))
    request = authorisation.authorise(world.signed, world.restorers[:2], [1], why="a look", valid_s=3600)
    given = {"sealed": str(world.out), "owner": str(world.owner.public), "request": request.hex()}
    refusal = "AuthorisationInvalid: the authorisation has expired, or this clock is wrong; sign a new one"
    for offset, good in {"+0": True, "-4m": True, "-6m": False, "-5h": False, "+50m": True, "+61m": False}.items():
        node.set_clock(offset)
        answer = node.ask(what="check", **given)
        assert answer.get("error", "") == ("" if good else refusal), offset
    # Nobody can make one that outlasts a clock that is set back by more than a week.
    node.set_clock("-8d")
    assert node.ask(what="check", **given)["error"] == refusal
