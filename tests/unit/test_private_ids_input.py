"""Private ids: what counts as the same id, and one clear error for each thing that is wrong, which shows no id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from psl_flower.errors import AlignmentError, ConfigError, PslError
from psl_flower.split import PartySide, fit_local, pseudonyms
from psl_flower.split.private_ids import digests, of_pseudonyms
from psl_flower.split.side import Reader
from tests import parties_in_process as usual
from tests import plain_split as plain
from tests import plain_u_shape as u

ADAM = torch.optim.Adam
KEY, OTHER = b"k" * 32, b"o" * 32
IDS = [f"id-{number}" for number in range(plain.NUM_SAMPLES)]


def party_with(**changes: dict[str, Any]) -> Any:
    def party(name: str, context: Any) -> PartySide:
        told = {"net": plain.net(name), "data": plain.columns()[name], "optimizer": ADAM, "ids": IDS, "id_key": KEY}
        return PartySide(**(told | changes.get(name, {})))

    return party


def fit(party: Any, **changes: Any) -> Any:
    return fit_local(party, usual.training(**({"epochs": 1, "ids": pseudonyms(IDS, KEY)} | changes)))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("A-17", "a-17"),
        (" A-17\t", "A-17"),
        ("\uff21-\uff11\uff17", "A-17"),
        ("Strasse", "Straße"),
        ("Zoe\u0308", "Zoë"),
        ("\ufb01", "FI"),
    ],
)
def test_the_same_id_written_in_another_way(left: str, right: str) -> None:
    assert pseudonyms([left], KEY) == pseudonyms([right], KEY)


@pytest.mark.parametrize(("left", "right"), [("A-17", "A17"), ("17", "017"), ("A 17", "A-17")])
def test_other_ids(left: str, right: str) -> None:
    assert pseudonyms([left], KEY) != pseudonyms([right], KEY)


def test_pseudonyms_depend_on_the_key_and_show_nothing_else() -> None:
    found = pseudonyms(["id-1", "id-2"], KEY)
    assert found == pseudonyms(["id-1", "id-2"], bytes(KEY))
    assert all(re.fullmatch("psl1-[0-9a-f]{16}-[0-9a-f]{32}", text) for text in found)
    assert not set(found) & set(pseudonyms(["id-1", "id-2"], OTHER))
    assert found[0][:22] == found[1][:22] != pseudonyms(["id-1"], OTHER)[0][:22]  # of the key
    read = of_pseudonyms(found, "the server")
    assert read is not None
    assert np.array_equal(read.values, digests(["id-1", "id-2"], KEY, "x").values)


def test_ids_in_an_array() -> None:
    assert pseudonyms(np.array(["id-1", "id-2"]), KEY) == pseudonyms(["id-1", "id-2"], KEY)
    assert fit(party_with(fare={"ids": np.array(IDS)}), ids=np.array(pseudonyms(IDS, KEY))).rounds
    assert fit(usual.party_with(ADAM, ids=np.array(IDS)), ids=np.array(IDS)).rounds  # not private, as ever


def test_a_digest_that_ends_in_zeros_stays_whole() -> None:
    """NumPy's texts of fixed length lose zeros at the end; one id in 256 has such a digest."""
    ids = [str(number) for number in range(2000)]
    values = digests(ids, KEY, "x").values
    assert any(len(value) < 16 for value in values.tolist())
    read = of_pseudonyms(pseudonyms(ids, KEY), "the server")
    assert read is not None
    assert np.array_equal(read.values, values)


@pytest.mark.parametrize(
    ("ids", "key", "error", "words"),
    [
        (["a", "b"], "k" * 32, ConfigError, "id_key: expected bytes, got str"),
        (["a", "b"], b"short", ConfigError, "id_key: expected 16 random bytes or more, got 5"),
        (["a", 7], KEY, AlignmentError, "the id of row 1 is no text but int; write ids as text"),
        ([float("nan"), None, 1, 2], KEY, AlignmentError, "the ids of rows 0, 1, 2 and 1 more are no text but float"),
        (["a", " \n"], KEY, AlignmentError, "the id of row 1 is empty"),
        (["a", "hidden-9", "b", "HIDDEN-9 "], KEY, AlignmentError, "the ids of rows 1 and 3 are the same once case"),
        (["a", "\ud800"], KEY, AlignmentError, "an id is no valid Unicode"),
    ],
)
def test_ids_that_are_refused(ids: Any, key: Any, error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)) as told:
        pseudonyms(ids, key)
    assert "hidden-9" not in str(told.value).lower()


@pytest.mark.parametrize(
    ("side", "error", "words"),
    [
        ({"ids": IDS[:50]}, AlignmentError, "party 'fare': 60 samples, but 50 ids"),
        ({"ids": None}, ConfigError, "party 'fare': id_key: give the ids, too"),
        ({"id_key": OTHER}, AlignmentError, "party 'fare' has another id_key than the server's ids"),
        ({"ids": [text.replace("-", "") for text in IDS]}, AlignmentError, "party 'fare': none of its 60 ids is that of "
         "one of the 60 samples, though the key is the same; look at how ids are written"),
        ({"id_key": None}, AlignmentError, "party 'fare' gives no private ids (ids=, id_key=), party 'person' does"),
        ({"ids": None, "id_key": None}, AlignmentError, "party 'fare' gives no private ids (ids=, id_key=)"),
        ({"ids": None, "id_key": None, "samples": range(60)}, AlignmentError, "party 'fare' gives no private ids"),
        ({"present": np.ones(60, bool)}, ConfigError, "party 'fare': present: rows that name their samples are all there"),
        ({"ids": [IDS[0].upper(), *IDS[:-1]]}, AlignmentError, "party 'fare': the ids of rows 0 and 1 are the same"),
    ],
)  # fmt: skip
def test_what_a_party_brings(side: dict[str, Any], error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        fit(party_with(fare=side))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (None, "the parties give private ids, but the server's labels have no pseudonyms; give it ids=pseudonyms("),
        (IDS, "the parties give private ids, but the server's labels have no pseudonyms"),
        (pseudonyms(IDS, KEY)[:-1], "the server's labels: 60 samples, but 59 ids"),
        ([*pseudonyms(IDS, KEY)[:-1], "id-59"], "the server's labels: 1 of 60 ids are no pseudonyms"),
        ([*pseudonyms(IDS[:-1], KEY), *pseudonyms(IDS[-1:], OTHER)], "the server's labels: pseudonyms of 2 keys"),
        ([*pseudonyms(IDS[:-1], KEY), *pseudonyms(IDS[:1], KEY)], "the server's labels: 1 ids occur more than once"),
    ],
)  # fmt: skip
def test_what_the_server_gives(ids: Any, words: str) -> None:
    with pytest.raises(AlignmentError, match=re.escape(words)):
        fit(party_with(), ids=ids)


def test_pseudonyms_and_parties_without_ids() -> None:
    with pytest.raises(
        AlignmentError, match=re.escape("party 'person' gives no private ids (ids=, id_key=), the server")
    ):
        fit(usual.party_with(ADAM))


def test_a_label_that_is_missing() -> None:
    def party(name: str, context: Any) -> Any:
        if name in plain.PARTIES:
            return party_with()(name, context)
        return u.label_side(ADAM, labels=plain.labels()[2:], ids=IDS[2:], id_key=KEY)

    with pytest.raises(AlignmentError, match=re.escape("party 'clinic' (labels) has no label of 2 samples of train")):
        fit_local(party, u.training(ADAM, "clinic", ids=pseudonyms(IDS, KEY)))


def test_plain_ids_at_the_server() -> None:
    def party(name: str, context: Any) -> Any:
        return party_with()(name, context) if name in plain.PARTIES else u.label_side(ADAM, ids=IDS, id_key=KEY)

    with pytest.raises(AlignmentError, match="but the server's are no pseudonyms; give it ids="):
        fit_local(party, u.training(ADAM, "clinic", ids=IDS))


def test_labels_in_another_order_after_an_interruption(tmp_path: Path) -> None:
    """The order of the labels' holder is that of the samples: another one is told."""

    def party_of(order: Any) -> Any:
        def party(name: str, context: Any) -> Any:
            if name in plain.PARTIES:
                return party_with()(name, context)
            return u.label_side(ADAM, labels=plain.labels()[order], ids=[IDS[row] for row in order], id_key=KEY)

        return party

    fit_local(party_of(range(60)), u.training(ADAM, "clinic", workdir=tmp_path, epochs=1))
    with pytest.raises(AlignmentError, match="are others than when this training began"):
        fit_local(party_of(range(59, -1, -1)), u.training(ADAM, "clinic", workdir=tmp_path, epochs=1))


def test_a_party_that_comes_back_with_other_ids(tmp_path: Path) -> None:
    fit(party_with(), workdir=tmp_path)
    fewer = {"ids": IDS[1:], "data": plain.columns()["fare"][1:]}
    with pytest.raises(AlignmentError, match="which party has which of them, are others than when this training began"):
        fit(party_with(fare=fewer), workdir=tmp_path)
    # A record of no sample more is another set to the party itself.
    more = {"ids": [*IDS, "x"], "data": torch.cat([plain.columns()["fare"], torch.zeros(1, 5)])}
    with pytest.raises(PslError, match="the checkpoint is not of party 'fare' and this dataset"):
        fit(party_with(fare=more), workdir=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": b"x" * 15}, "party 'person': expected a digest for each of 60 rows, got 15 bytes"),
        ({"ids": b"x" * 960}, "party 'person': digests of ids occur more than once"),
        ({"dataset": ""}, "party 'person': expected a digest for each of 60 rows"),
        ({"samples": b"x" * 480, "ids": b""}, "party 'person' gives no private ids"),
    ],
)
def test_claims_that_are_nonsense(change: dict[str, Any], words: str) -> None:
    made = usual.training(ids=pseudonyms(IDS, KEY))
    claims = {m: Reader(party_with()(name, None), name).claim(m) for m, name in enumerate(plain.PARTIES)}
    made.take(claims)
    with pytest.raises(AlignmentError, match=re.escape(words)):
        made.take(claims | {0: msgspec.structs.replace(claims[0], **change)})


def test_a_claim_shows_no_id_and_no_key() -> None:
    side = party_with()("fare", None)
    claim = Reader(side, "fare").claim(1)
    assert b"id-7" not in msgspec.msgpack.encode(claim)
    assert KEY not in msgspec.msgpack.encode(claim)
    assert repr(KEY) not in repr(side)
    turned = PartySide(side.net, side.data.flip(0), ADAM, ids=IDS[::-1], id_key=KEY)
    assert Reader(turned, "fare").claim(1) == claim  # nor the order of records
