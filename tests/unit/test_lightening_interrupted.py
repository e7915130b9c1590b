"""A whole lightening in this process, interrupted at every stage: called again, it ends with the same files."""

import json

import pytest
from tiny_run import make_run

from psl_flower.inference.evaluation import stores_of
from psl_flower.inference.trained_model import load_trained_model
from psl_flower.lightening import local
from psl_flower.lightening.local import lighten
from psl_flower.lightening.settings import Against, Goals, LighteningSettings, Method, Request, TeacherChoice
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.labels import LabelBook

SETTINGS = LighteningSettings(
    epochs=2, degrees=2, max_pruned=0.5, distil_first=True, teacher=TeacherChoice.FIRST, second_ratio=1.5
)
# Any accuracy and speed will do, so that what is tried does not hang on how fast this machine is.
REQUEST = Request(Goals(min_accuracy=0.0, min_speed=1e-3, method=Method.LOOP), SETTINGS)
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
    whole = lighten(tiny(tmp_path / "whole"), REQUEST, lambda *_: None)
    run, interrupted = tiny(tmp_path / "parts"), []

    def interrupt(what, done, total):
        # In training after the first of two epochs, where a checkpoint of the first is there.
        if what in STAGES and what not in interrupted and 2 * done > total:
            interrupted.append(what)
            raise KeyboardInterrupt

    for _ in STAGES:
        with pytest.raises(KeyboardInterrupt):
            lighten(run, REQUEST, interrupt)
    parts = lighten(run, REQUEST, interrupt)
    assert tuple(interrupted) == STAGES
    assert outcome(parts) == outcome(whole)
    assert outcome(parts)[1].keys() == {"first", "first-int8", "second", "first-distilled", "degree-000"}
    # The first has learnt from the second: it is another model than the run's.
    first, taught = (whole.folder.place(name) / "lower.onnx" for name in ("first", "first-distilled"))
    assert first.read_bytes() != taught.read_bytes()


# Agreement with the first model: of a tiny run's accuracy nothing can be said.
AT_HAND = LighteningSettings(epochs=1, degrees=1, max_pruned=0.5, second_ratio=1.5, against=Against.FIRST)


def trained_in(progress_of):
    """Return a callback of progress that notes what is trained."""
    return lambda what, done, total: None if what.startswith("judging") else progress_of.add(what)


def test_the_models_at_hand_are_looked_at_first(tmp_path):
    """Nothing is trained where the run's own model will do, in int8 say."""
    run, trained, said = tiny(tmp_path), set(), []
    request = Request(Goals(max_drop=0.995, min_speed=1e-3), AT_HAND)
    found = lighten(run, request, trained_in(trained), said.append)
    assert trained == set()
    assert found.choice is not None
    assert found.choice.what in ("first", "first-int8")
    assert found.reason == "no model had to be trained for it"
    chosen = found.folder.place(found.choice.what) / "model.onnx"
    assert (found.third / "model.onnx").read_bytes() == chosen.read_bytes()
    assert not found.folder.place("second").exists()
    assert said[0].startswith("accuracy is measured on ")
    goals = "goals: accuracy at least 0.50% (100.00% less 99.5 points), more than 0.001 images/s"
    assert said[1:3] == ["measuring the speed of 2 models in turns", goals]
    assert [line.split(": ")[0] for line in said[3:5]] == ["first (the run's), float32", "first, directly in int8"]
    assert said[-1].startswith("chosen: first")


@pytest.mark.slow
def test_where_no_model_at_hand_will_do_every_third_is_judged_in_float32_too(tmp_path):
    run, trained, said = tiny(tmp_path), set(), []
    impossible = Request(Goals(min_accuracy=0.0, min_speed=1e12), AT_HAND)
    found = lighten(run, impossible, trained_in(trained), said.append)
    assert trained == {"second model", "degree 1", "degree 1, rounded"}
    assert (found.choice, found.third) == (None, None)
    assert found.folder.at_hand().keys() == {
        "first", "first-int8", "second", "degree-001-float32", "degree-001",
    }  # fmt: skip
    assert found.closest in found.folder.at_hand()
    assert any(line.startswith("at most 2 degrees to train and judge, about ") for line in said)
    assert said[-1] == f"none: {found.reason}"
    assert "speed" in found.reason
    # Now both thirds are at hand, and nothing is trained again.
    trained.clear()
    again = lighten(run, Request(Goals(min_accuracy=0.0, min_speed=1e-3), AT_HAND), trained_in(trained))
    assert again.choice is not None
    assert trained == set()


class Seen(Exception):
    """Ends a lightening where it has begun."""


def test_the_labels_are_those_that_the_run_began_with(tmp_path, monkeypatch):
    """As over the federation: whoever corrects some afterwards changes what an evaluation is held to."""
    run = make_run(tmp_path, image_size=(8, 8), batch_size=8, rounds=1, alpha=0.0)[0]
    trained = load_trained_model(run)
    began = stores_of(run, trained)
    other = int(began.labels[0] + 1) % 10
    owner = keyfile.load(began.keys / "owner.key")
    LabelBook(began.folder).relabel(manifests.load(began.folder).manifest, owner, [(0, other)], "misread")

    def backend(trainer, **_):
        raise Seen(trainer.stores.labels.tolist())

    monkeypatch.setattr(local, "LocalBackend", backend)
    with pytest.raises(Seen) as caught:
        lighten(run, REQUEST, lambda *_: None)
    assert caught.value.args == (began.labels.tolist(),)
    assert stores_of(run, trained).labels[0] == other
