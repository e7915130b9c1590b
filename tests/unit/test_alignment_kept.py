"""Who has which samples is noted when a training begins, also where nobody names any."""

import pytest

from psl_flower.errors import AlignmentError
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
