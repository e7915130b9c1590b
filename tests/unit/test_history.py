"""The changes of a run's rounds, and the file that keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.history import FILE, Extension, extensions, note_extension

FIRST, SECOND = Extension(step=3, before=1, rounds=2), Extension(step=6, before=2, rounds=3)


def test_a_line_that_a_crash_cut_is_dropped_and_the_next_is_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert extensions(run) == []
    note_extension(run, FIRST)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes() + b'{"step": 6, "bef')
    assert extensions(run) == [FIRST]
    note_extension(run, SECOND)
    assert extensions(run) == [FIRST, SECOND]


def test_damage_in_another_line_is_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / FILE).write_bytes(b'{"step": 6, "bef\n')
    note_extension(run, SECOND)
    with pytest.raises(RunError, match=r"extended\.jsonl: line 1 is damaged: .*; remove the line"):
        extensions(run)
