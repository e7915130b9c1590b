"""ensure_sealed and prepare_stores disturbed: interruption, a full disk, two processes at once, nowhere to write."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import PslError, StoreError, StoreUnreachable
from psl_flower.sealed import ingest
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import store_request
from tests.paths import ROOT
from tests.unit.tiny_pictures import files_of, images_of, listing, request_for
from tests.unit.tiny_sealed import content, make_sealed, same_sets


def interrupt(tmp_path, pictures, monkeypatch, stage, at):
    """Begin to seal in segments of 4 and stop after `at` images of a split."""
    monkeypatch.setattr(ingest, "sizes", lambda *_: (4, 2))

    def stop(split, done, total):
        if (split, done) == (stage, at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sealed(tmp_path, request_for(pictures), stop)


@pytest.mark.parametrize(("stage", "at", "kept"), [("train", 4, 4), ("train", 8, 8), ("test", 3, 12)])
def test_an_interrupted_ingest_is_completed(tmp_path, pictures, monkeypatch, stage, at, kept):
    interrupt(tmp_path, pictures, monkeypatch, stage, at)
    (left,) = listing(tmp_path / "root")
    segments = {path: data for path, data in content(tmp_path / "root").items() if "segment" in path.name}
    calls = []
    made = make_sealed(tmp_path, request_for(pictures), lambda *call: calls.append(call))
    assert made.created and made.folder.name == left
    assert len(segments) == 4 * kept // 4
    assert segments.items() <= content(tmp_path / "root").items()
    assert sum(1 for _ in calls) == len({call for call in calls})
    assert [call for call in calls if call[0] == "train"] == [("train", done, 9) for done in (4, 8, 9) if done > kept]
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))
    same_sets(made, ensure_stores(tmp_path / "plain", request_for(pictures)))
    assert not make_sealed(tmp_path, request_for(pictures)).created


@pytest.mark.parametrize("replaced", ["*", "owner*", "lower*", "node-001*", "restorer-1*"])
def test_an_interrupted_ingest_under_other_keys_is_done_again(tmp_path, pictures, monkeypatch, replaced):
    interrupt(tmp_path, pictures, monkeypatch, "train", 8)
    for path in (tmp_path / "keys").glob(replaced):
        path.unlink()
    calls = []
    made = make_sealed(tmp_path, request_for(pictures), lambda *call: calls.append(call))
    assert made.created and calls[0] == ("train", 4, 9)
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))


def test_a_full_disk_is_an_error_and_what_it_leaves_is_completed(tmp_path, pictures, monkeypatch):
    make_sealed(tmp_path, request_for(pictures, seed=1))
    create, count = ingest.DISK.create, []

    def full(path, mode=0o644):
        count.append(path)
        if len(count) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(ingest.DISK, "create", full)
        with pytest.raises(StoreUnreachable, match="No space left on device; free some space"):
            make_sealed(tmp_path, request_for(pictures))
    made = make_sealed(tmp_path, request_for(pictures))
    assert made.created
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))


# Each process says that it is ready and waits for a word, so that both begin at once.
TOGETHER = """
import sys; from pathlib import Path; from psl_flower.stores.sealed_set import *
r = StoreRequest(dataset=sys.argv[2], patch_size=(4, 4), stride=(4, 4))
root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(ensure_sealed(root / "root", r, root / "keys").created)
"""


def test_two_processes_at_once_make_one_set(tmp_path, pictures):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path), str(pictures)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["False", "True"]
    made = make_sealed(tmp_path, request_for(pictures))
    assert not made.created
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))


def unwritable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    config = RunConfig.of(max_train=20, max_test=5, workspace=str(tmp_path / "workspace"))
    folder, _, _ = store_request(config).locate(tmp_path / "locked" / "stores")
    folder.with_name(f".{folder.name}.lock").mkdir(parents=True)
    return {
        "workspace is in a file": config.replace(workspace=str(tmp_path / "file" / "deeper")),
        "nobody may write": config.replace(workspace="/proc/nowhere"),
        "no lock": config.replace(workspace=str(tmp_path / "locked")),
        "keys are a file": config.replace(keys=str(tmp_path / "file")),
        "keys are in a file": config.replace(keys=str(tmp_path / "file" / "keys")),
    }


@pytest.mark.parametrize(
    "where",
    ["workspace is in a file", "nobody may write", "no lock", "keys are a file", "keys are in a file"],
)
def test_what_cannot_be_written_is_one_error(tmp_path, where):
    with pytest.raises(PslError) as caught:
        prepare_stores(unwritable(tmp_path)[where])
    assert type(caught.value) is not PslError
    assert str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workspace_that_may_only_be_read(tmp_path):
    (tmp_path / "stores").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot be made"):
        prepare_stores(RunConfig.of(max_train=20, max_test=5, workspace=str(tmp_path)))
