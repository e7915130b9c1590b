"""Restoring, at hand and by asking the nodes: nothing is released without enough signatures and a line in the log."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from psl_flower import errors
from psl_flower.errors import PslError
from psl_flower.sealed import authorisation, envelope
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.restore import restore
from psl_flower.sealed.store import SealedStore
from psl_flower.system.files import Disk
from tests.security.sealed_bytes import COUNT, SOURCE, every_change
from tests.vectors.sealed_support import World


def test_nothing_is_released_that_cannot_be_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Disk):
        def write(self, descriptor: int, data: bytes, path: Path) -> None:
            raise errors.StoreUnreachable("the disk is full")

    def released(*_: object) -> None:
        raise AssertionError("a record was read before it was logged")

    monkeypatch.setattr(SealedStore, "read", released)
    log = AuditLog(world.out / "audit.log", Full())
    with pytest.raises(errors.StoreUnreachable):
        restore(world.signed, world.places, world.restorers, [0], why="", log=log)
    request = authorisation.authorise(world.signed, world.restorers[:2], [0], why="")
    with pytest.raises(errors.StoreUnreachable):
        authorisation.answer(request, world.signed, world.open(0), world.nodes[0], log)
    assert not log.path.exists()


def test_a_refused_restoration_leaves_nothing(world: World, tmp_path: Path) -> None:
    log = AuditLog(world.out / "audit.log")
    with pytest.raises(errors.TooFewShares):
        restore(world.signed, world.places, world.restorers[:1], [0], why="", log=log)
    with pytest.raises(errors.StoreNotFound):
        restore(world.signed, world.places[:1], world.restorers, [0], why="", log=log)
    with pytest.raises(errors.ConfigError, match="there is no image"):
        restore(world.signed, world.places, world.restorers, [COUNT], why="", log=log)
    assert not log.path.exists()


def test_remote_restoration(world: World, tmp_path: Path) -> None:
    signed, (alice, bob, _) = world.signed, world.restorers
    request = authorisation.co_sign(authorisation.authorise(signed, [alice], [3, 0], why="look"), signed, bob)
    logs = [AuditLog(tmp_path / f"node{m}" / "audit.log") for m in range(2)]

    def ask(data: bytes, when: float | None = None) -> list[bytes]:
        return [authorisation.answer(data, signed, world.open(m), world.nodes[m], logs[m], when) for m in range(2)]

    answers = ask(request)
    assert (authorisation.open_answers(answers, request, signed, alice) == SOURCE.all_NCHW[[3, 0]]).all()
    assert [entry.images for entry in logs[1].read(signed.manifest)] == [(3, 0)]
    with pytest.raises(errors.AuthorisationInvalid):  # bob signed, but only alice is a recipient
        authorisation.open_answers(answers, request, signed, bob)
    for wrong, error in (
        (answers[:1], errors.AuthorisationInvalid),
        ([answers[0], answers[0]], errors.AuthorisationInvalid),
        (ask(authorisation.authorise(signed, [alice, bob], [3, 0], why="")), errors.AuthorisationInvalid),
    ):
        with pytest.raises(error):
            authorisation.open_answers(wrong, request, signed, alice)
    forged = envelope.sign(
        authorisation.ANSWER, envelope.parse(authorisation.ANSWER, answers[0], "").payload, [world.nodes[1]]
    )
    with pytest.raises(errors.SignatureInvalid):
        authorisation.open_answers([forged, answers[1]], request, signed, alice)

    before = len(logs[0].read(signed.manifest))
    eve = Identity.generate(Role.RESTORER, "eve")
    payload = envelope.parse(authorisation.AUTHORISATION, request, "").payload
    other = msgspec.structs.replace(authorisation.check(request, signed), epoch=2)
    refusals: list[tuple[bytes, float | None, type[PslError]]] = [
        (authorisation.authorise(signed, [alice], [3], why=""), None, errors.TooFewShares),
        (request, 4e9, errors.AuthorisationInvalid),
        (request, 0.0, errors.AuthorisationInvalid),
        (envelope.sign(authorisation.AUTHORISATION, payload, [alice, eve]), None, errors.UnknownRestorer),
        (
            envelope.sign(authorisation.AUTHORISATION, envelope.encode(other), [alice, bob]),
            None,
            errors.AuthorisationInvalid,
        ),
        (envelope.sign(authorisation.AUTHORISATION, payload, [alice, alice]), None, errors.SignatureInvalid),
    ]
    for data, when, refusal in refusals:
        with pytest.raises(refusal):
            ask(data, when)
    for changed in every_change(request):
        with pytest.raises(PslError):
            authorisation.check(changed, signed)
    # What is refused is not answered, and not logged as if it were.
    assert len(logs[0].read(signed.manifest)) == before
    for changed in list(every_change(answers[0]))[::5]:
        with pytest.raises(PslError):
            authorisation.open_answers([changed, answers[1]], request, signed, alice)
    with pytest.raises(errors.AuthorisationInvalid):
        authorisation.authorise(signed, [alice], [COUNT], why="")
    with pytest.raises(errors.AuthorisationInvalid):
        authorisation.authorise(signed, [alice], [0], why="", recipients=[eve.public])


def test_nobody_signs_an_authorisation_twice(world: World) -> None:
    """Nobody would accept it, and what is written is found out only then."""
    signed, (alice, bob, _) = world.signed, world.restorers
    with pytest.raises(errors.RestoreRefused, match="'alice' .* twice"):
        authorisation.authorise(signed, [alice, bob, alice], [0], why="")
    request = authorisation.authorise(signed, [alice], [0], why="")
    with pytest.raises(errors.RestoreRefused, match="'alice' .* already"):
        authorisation.co_sign(request, signed, alice)
    assert authorisation.check(authorisation.co_sign(request, signed, bob), signed).images == (0,)
