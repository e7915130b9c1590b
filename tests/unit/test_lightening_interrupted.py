"""A whole lightening in this process, interrupted at every stage: called again, it ends with the same files."""

import json

import pytest
from tiny_run import make_run

from psl_flower.lightening.local import lighten
from psl_flower.lightening.settings import Asked, Lesson, LighteningSettings

SETTINGS = LighteningSettings(
    epochs=2, degrees=2, max_pruned=0.5, distil_first=True, teacher=Lesson.FIRST, second_ratio=1.5
)
# Any accuracy and speed will do, so that what is tried does not hang on how fast this machine is.
ASKED = Asked(min_accuracy=0.0, min_speed=1e-3)
STAGES = (
    "judging first-int8", "second model", "judging second", "first, from the second", "degree 0", "degree 0, rounded",
    "judging degree-000",
)  # fmt: skip


def tiny(workspace):
    return make_run(workspace, image_size=(8, 8), batch_size=8, rounds=1, alpha=0.0)[0]


def outcome(result):
    files = {path.name: path.read_bytes() for path in result.third.iterdir()}
    entries = [json.loads(line) for line in (result.folder.path / "log.jsonl").read_text().splitlines()]
    return files, {entry["what"]: (entry["judged"]["accuracy"], entry["judged"]["num_bytes"]) for entry in entries}


@pytest.mark.slow
def test_interrupted_at_every_stage_it_ends_with_the_same_files(tmp_path):
    whole = lighten(tiny(tmp_path / "whole"), ASKED, SETTINGS, lambda *_: None)
    run, interrupted = tiny(tmp_path / "parts"), []

    def interrupt(what, done, total):
        # In training after the first of two epochs, where a checkpoint of the first is there.
        if what in STAGES and what not in interrupted and 2 * done > total:
            interrupted.append(what)
            raise KeyboardInterrupt

    for _ in STAGES:
        with pytest.raises(KeyboardInterrupt):
            lighten(run, ASKED, SETTINGS, interrupt)
    parts = lighten(run, ASKED, SETTINGS, interrupt)
    assert tuple(interrupted) == STAGES
    assert outcome(parts) == outcome(whole)
    assert outcome(parts)[1].keys() == {"first", "first-int8", "second", "first-distilled", "degree-000"}
    # The first has learnt from the second: it is another model than the run's.
    first, taught = (whole.folder.place(name) / "lower.onnx" for name in ("first", "first-distilled"))
    assert first.read_bytes() != taught.read_bytes()
