"""A training's folder: who has which samples is noted when it begins, and one process at a time works in it."""

import subprocess
import sys

import pytest

from psl_flower.errors import AlignmentError, RunError
from psl_flower.split.folder import TrainingFolder


@pytest.mark.parametrize(("first", "then"), [("", "a" * 32), ("a" * 32, ""), ("a" * 32, "b" * 32)])
def test_a_resumed_training_takes_no_other_alignment(tmp_path, first, then):
    folder = TrainingFolder(tmp_path / "run")
    folder.begin({"seed": 0})
    folder.check_alignment(first)
    folder.check_alignment(first)
    folder.begin({"seed": 0})
    with pytest.raises(AlignmentError, match="others than when this training began"):
        folder.check_alignment(then)
    folder.check_alignment(first)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path, monkeypatch):
    """Two would leave checkpoints of either, from which nothing resumes."""
    monkeypatch.setattr("psl_flower.split.folder._PATIENCE_S", 0.1)
    program = (
        "import sys; from pathlib import Path; from psl_flower.split.folder import TrainingFolder\n"
        "with TrainingFolder(Path(sys.argv[1])).claimed(): print('held', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "training"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        taken = "training: another process is training here; .* flwr stop"
        with pytest.raises(RunError, match=taken), TrainingFolder(folder).claimed():
            raise AssertionError
        other.stdin.close()
        other.wait()
    with TrainingFolder(folder).claimed():
        pass
