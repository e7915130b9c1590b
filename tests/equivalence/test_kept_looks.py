"""Looks on the Lower's disk: for its user alone, of one run, and damage is noticed."""

from __future__ import annotations

import pytest

from psl_flower.engine.footprint import footprint
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.looks import looks_of
from psl_flower.errors import RunError
from tests.engines import Oracle, differences
from tests.equivalence.frozen_parts import FROZEN_AT, LOOKS, STEPS, Parts, frozen, resume


def test_looks_are_private_and_of_this_run(stores_for, tmp_path):
    config = frozen(**LOOKS)
    stores = stores_for(config)
    parts = Parts(config, stores, tmp_path)
    parts.run()
    folder = tmp_path / "looks"
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["upper-000.looks", "upper-001.looks"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    # 6 signs of 2 patches in 2 bytes for each of 2 views of 24 images and 8 test images; and heads.
    assert files[0].stat().st_size < 2 * (2 * 24 + 8) + 32 * 20 + 400
    other = Parts(frozen(**LOOKS | {"code_size": 7}), stores, tmp_path / "other")
    with pytest.raises(RunError, match="they are of another run, or of other settings; delete the file"):
        looks_of(other.blueprint, other.driver.task, folder, "run")


@pytest.mark.parametrize("changes", [LOOKS, {"looks": 1, "uppers": 2, "wire_activations": "int8"}, {"looks": 0}])
def test_a_dry_run_knows_what_they_take_on_the_disk(changes, stores_for, tmp_path):
    config = frozen(**changes)
    parts = Parts(config, stores_for(config), tmp_path)
    parts.run()
    on_disk = [file.stat().st_size for file in (tmp_path / "looks").glob("*")]
    assert len(on_disk) == 2 * bool(changes["looks"])
    # But for the length of the run's name.
    assert footprint(parts.blueprint, 4).looks == pytest.approx(sum(on_disk), abs=64 * len(on_disk))


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "no such file", "version", "swapped"])
def test_damaged_looks_are_asked_for_again_or_refused(damage, stores_for, tmp_path):
    config = frozen(**LOOKS)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    parts = Parts(config, stores, tmp_path)
    parts.run(stop_step=FROZEN_AT)
    parts.driver.look(LocalExchange(parts.parties, parts.wire))
    path = tmp_path / "looks" / "upper-000.looks"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-40])
        again = Parts(config, stores, tmp_path)
        assert again.looks.complete == (1,)
        resume(again)
        again.run()
        assert differences(whole.after[STEPS], again.snapshot()) == []
        return
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "longer":
        content += b"x"
    elif damage == "no such file":
        content[0] ^= 1
    elif damage == "version":
        content[8] = 9
    else:
        content = bytearray((tmp_path / "looks" / "upper-001.looks").read_bytes())
    path.write_bytes(content)
    words = {
        "flipped": r"batch \d+ was changed",
        "longer": "longer than it should be",
        "no such file": "it is no such file",
        "version": "version 9 is not known, only 1",
        "swapped": "of another run, or of other settings",
    }
    with pytest.raises(RunError, match=words[damage]):
        Parts(config, stores, tmp_path)
