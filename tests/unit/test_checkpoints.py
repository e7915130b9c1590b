"""Checkpoints: kept, dropped and read back; never code, never a part of a file."""

import pytest
import torch

from psl_flower.engine.checkpoints import Checkpoints, load_state, save_state
from psl_flower.engine.optimizers import Sgd
from psl_flower.errors import RunError, TrainingError


def state(step):
    return {"step": step, "weights": {"w": torch.arange(4.0) * step}, "names": ["a", "b"], "text": "x"}


def test_round_trip(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder")
    assert checkpoints.steps() == []
    path = checkpoints.save(7, state(7))
    assert path == tmp_path / "new" / "folder" / "step-00000007.pt"
    loaded = checkpoints.load(7)
    assert torch.equal(loaded.pop("weights")["w"], torch.arange(4.0) * 7)
    assert loaded == {"step": 7, "names": ["a", "b"], "text": "x", "threads": torch.get_num_threads()}


def test_the_newest_three_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (0, 5, 10, 15, 20):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [10, 15, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08d}.pt" for s in (10, 15, 20)]


def test_later_ones_of_an_abandoned_attempt_do_not_push_out_a_new_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (100, 110, 120, 5):
        checkpoints.save(step, state(step))
    assert checkpoints.load(5)["step"] == 5


def test_saving_again_replaces(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.save(1, state(9))
    assert checkpoints.load(1)["step"] == 9


def test_other_files_are_not_checkpoints(tmp_path):
    for name in ("live.pt", "step-1.pt", "step-00000001.pt.tmp", ".step-00000002.pt.x.tmp"):
        (tmp_path / name).write_bytes(b"")
    assert Checkpoints(tmp_path).steps() == []


def test_missing_ones_are_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RunError, match=r"no checkpoint of step 3 \(there: none\)"):
        checkpoints.load(3)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    with pytest.raises(RunError, match=r"no checkpoint of step 3 \(there: 1, 2\)"):
        checkpoints.load(3)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, state(1))
    whole = path.read_bytes()
    lengths = [*range(0, len(whole), 97), len(whole) - 1]
    assert len(lengths) > 10
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"state\.pt: cannot be read"):
            load_state(path)


def test_flipped_bits_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, state(3))
    whole = path.read_bytes()
    places = range(0, len(whole), 3)
    assert len(places) > 100
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(RunError, match=r"state\.pt: cannot be read: the file is damaged"):
            load_state(path)
    path.write_bytes(whole)
    assert load_state(path)["step"] == 3


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code ran",))


def test_code_is_not_run(tmp_path):
    path = tmp_path / "state.pt"
    # By `save_state` itself, so that the digest is right and the content is what is refused.
    save_state(path, {"step": 1, "evil": Evil()})
    with pytest.raises(RunError, match="cannot be read: Weights only load failed"):
        load_state(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_nothing_could_go_on_from_is_not_saved(value, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    weights = torch.nn.Linear(2, 1, bias=False).weight
    optimizer = Sgd([weights], momentum=0.9, weight_decay=0.0)
    weights.grad = torch.tensor([[1.0, value]])
    optimizer.step()
    spoilt = state(2) | {"optimizer": optimizer.state_dict()}
    with pytest.raises(TrainingError, match="step 2: weights or momentum are not finite; the last checkpoint is kept"):
        checkpoints.save(2, spoilt)
    for state_of_others in ({"moments": (torch.tensor([value]),)}, {"best": value}):
        with pytest.raises(TrainingError, match="not finite"):
            checkpoints.save(2, state(2) | state_of_others)
    assert checkpoints.steps() == [1]


def test_a_missing_file_is_an_error_of_ours(tmp_path):
    with pytest.raises(RunError, match=r"none\.pt: cannot be read"):
        load_state(tmp_path / "none.pt")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"step-00000001\.pt: cannot be written: Not a directory"):
        Checkpoints(tmp_path / "file" / "folder").save(1, state(1))
