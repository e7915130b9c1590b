"""The folder of a lightening: its log, its models, their speeds, the images that decide, and the report."""

import json

import msgspec
import numpy as np
import pytest

from psl_flower.config import RunConfig
from psl_flower.engine.automatic_settings import split_training
from psl_flower.errors import RunError
from psl_flower.lightening.artefacts import WHOLE_FILE
from psl_flower.lightening.choosing import choose, faster
from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.judging import (
    Speed,
    images_to_calibrate,
    images_to_judge,
    together,
)
from psl_flower.lightening.method import Lightened
from psl_flower.lightening.names import degree_name
from psl_flower.lightening.report import PLOT_FILES, as_json, newest, pareto, rows, write_report
from psl_flower.lightening.search import Attempt, Conditions, LoopEnd, Verdict
from psl_flower.lightening.settings import LighteningSettings, Method
from psl_flower.lightening.turns import measure_in_turns, needs_turns
from psl_flower.runs.folder import RunFolder
from tests.unit.test_lightening_search import judged


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.model.mkdir(parents=True)
    (folder.model / "model.safetensors").write_bytes(b"weights")
    return folder


SETTINGS = LighteningSettings(threads=3, batch=16)
ASKED = Conditions(min_accuracy=0.8, min_speed=500.0)


def attempt(degree, verdict=Verdict.SATISFIED):
    return Attempt(degree=degree, judged=judged(), verdict=verdict)


def write_model(folder, what):
    folder.place(what).mkdir(exist_ok=True)
    (folder.place(what) / WHOLE_FILE).write_bytes(what.encode())


def test_the_log_says_all_of_an_attempt_and_is_read_again(run):
    folder = LighteningFolder(run, SETTINGS)
    write_model(folder, "degree-004")
    folder.note("first", judged(), 0.0)
    folder.note_attempt(attempt(4, Verdict.LIGHTEN_LESS), ASKED, 12.5)
    line = json.loads((folder.path / "log.jsonl").read_text().splitlines()[1])
    assert {key: line[key] for key in ("what", "degree", "verdict", "threads", "batch", "seconds")} == {
        "what": "degree-004", "degree": 4, "verdict": "lighten less", "threads": 3, "batch": 16, "seconds": 12.5,
    }  # fmt: skip
    assert line["judged"] == msgspec.to_builtins(judged())
    assert line["conditions"] == "accuracy above 80.00%, more than 500 images/s"
    again = LighteningFolder(run, SETTINGS)
    assert again.entries == folder.entries
    assert again.judged("degree-004") == judged()
    assert again.judged("degree-005") is None
    # What is known already is not logged twice; under other conditions it is.
    again.note_attempt(attempt(4, Verdict.LIGHTEN_LESS), ASKED, 0.0)
    assert len(again.entries) == 2
    again.note_attempt(attempt(4), Conditions(min_accuracy=0.1, min_speed=500.0), 0.0)
    assert len(LighteningFolder(run, SETTINGS).entries) == 3


def test_a_judgement_whose_file_has_gone_is_made_again(run):
    folder = LighteningFolder(run, SETTINGS)
    folder.note_attempt(attempt(4), ASKED, 0.0)
    assert folder.judged("degree-004") is None


def test_other_settings_and_another_model_have_another_folder(run):
    path = LighteningFolder(run, SETTINGS).path
    assert LighteningFolder(run, LighteningSettings(threads=3, batch=16)).path == path
    assert LighteningFolder(run, LighteningSettings(threads=2, batch=16)).path != path
    (run.model / "model.safetensors").write_bytes(b"others")
    assert LighteningFolder(run, SETTINGS).path != path
    assert json.loads((path / "settings.json").read_text())["settings"]["batch"] == 16


def test_a_line_that_a_crash_cut_is_dropped_and_the_next_is_whole(run):
    folder = LighteningFolder(run, SETTINGS)
    folder.note("first", judged(), 0.0)
    log = folder.path / "log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"what": "seco')
    again = LighteningFolder(run, SETTINGS)
    again.note("second", judged(), 0.0)
    assert [entry.what for entry in LighteningFolder(run, SETTINGS).entries] == ["first", "second"]
    log.write_bytes(b"not a log\n")
    with pytest.raises(RunError, match=r"log\.jsonl: line 1 is damaged: .* to start over"):
        LighteningFolder(run, SETTINGS)


def test_the_third_replaces_an_earlier_one(run):
    folder = LighteningFolder(run, SETTINGS)
    for degree in (2, 5):
        write_model(folder, degree_name(degree))
    (folder.place("degree-002") / "upper-000.onnx").write_bytes(b"2")
    folder.keep_third(degree_name(2))
    third = folder.keep_third(degree_name(5))
    assert [path.name for path in third.iterdir()] == [WHOLE_FILE]
    assert (third / WHOLE_FILE).read_bytes() == b"degree-005"


def test_a_run_without_a_model(tmp_path):
    with pytest.raises(RunError, match=r"model\.safetensors: run .* has no model yet; .*: psl train resume="):
        LighteningFolder(RunFolder(tmp_path), SETTINGS)


def test_the_table_has_the_newest_of_everything_in_order(run):
    folder = LighteningFolder(run, SETTINGS)
    folder.note_attempt(attempt(7), ASKED, 0.0)
    folder.note_attempt(attempt(3, Verdict.LIGHTEN_MORE), ASKED, 0.0)
    folder.note("first", judged(accuracy=0.5), 0.0)
    folder.note("first", judged(accuracy=0.91234), 0.0)
    assert [entry.what for entry in newest(folder.entries, ASKED)] == ["first", "degree-003", "degree-007"]
    first = ("first (the run's), float32", "91.23%", "", "1,000", "1.00")
    assert rows(folder.entries, ASKED, None)[0][:5] == first
    # Verdicts are those of the conditions asked for now, not those logged.
    assert [row[-1] for row in rows(folder.entries, ASKED, None)] == ["met"] * 3
    faster = Conditions(min_accuracy=0.8, min_speed=5000.0)
    assert [row[-1] for row in rows(folder.entries, faster, None)] == ["missed speed by 4,000 images/s"] * 3
    choice = {"what": "degree-003", "beaten_by": {"first": "degree-003"}}
    said = [row[-1] for row in rows(folder.entries, ASKED, choice)]
    assert said == ["met, beaten by: third, degree 3, int8", "met, chosen", "met"]


def test_a_machine_that_becomes_slower_ranks_no_model(run):
    """Every look is slower than the one before; two models that are as fast stay so."""
    folder, looks = LighteningFolder(run, SETTINGS), []
    for what in ("first", "degree-003"):
        write_model(folder, what)
    folder.note("first", judged(accuracy=0.91), 0.0)
    assert not needs_turns(folder)  # one alone
    folder.note_attempt(attempt(3), ASKED, 12.5)
    assert needs_turns(folder)

    def slower(place):
        looks.append(place.name)
        return Speed(images_per_s=1000 * 0.97 ** len(looks), latency_ms=1.0)

    measure_in_turns(folder, slower)
    assert looks == ["first", "degree-003", "degree-003", "first", "first", "degree-003"]
    first, third = (folder.judged(what) for what in ("first", "degree-003"))
    assert (first.accuracy, first.num_bytes) == (0.91, judged().num_bytes)
    assert first.images_per_s == pytest.approx(1000 * 0.97**4)
    assert not faster(first, third, ASKED) and not faster(third, first, ASKED)
    # Of what was compared nothing is measured again, nor after a look at other goals; a new model is.
    assert not needs_turns(LighteningFolder(run, SETTINGS))
    known = Attempt(degree=3, judged=third, verdict=Verdict.LIGHTEN_MORE)
    folder.note_attempt(known, Conditions(min_accuracy=0.1, min_speed=5000.0), 0.0)
    assert folder.entries[-1].degree == 3 and not needs_turns(folder)
    write_model(folder, "second")
    folder.note("second", judged(), 0.0)
    assert needs_turns(folder)


def test_several_measurements_are_one_speed():
    speeds = [Speed(images_per_s=rate, latency_ms=1000 / rate) for rate in (100.0, 80.0, 125.0)]
    speed = together(speeds)
    assert (speed.images_per_s, speed.latency_ms) == (100.0, 10.0)
    assert speed.images_per_s_spread == pytest.approx(0.225)
    assert speed.latency_spread == pytest.approx(0.225)


def test_the_pareto_front():
    points = [(1.0, 0.9), (2.0, 0.8), (1.5, 0.7), (3.0, 0.8), (0.5, 0.9)]
    assert pareto(points) == [0, 3]
    assert pareto([]) == []


def test_models_are_chosen_by_images_that_are_not_reported(stores_for):
    """The run's validation images, or half of its test images, the same ones every time."""
    description = stores_for(RunConfig.of(max_train=64, max_test=21)).description
    test_N = description.samples_of("test")
    plain = images_to_judge(RunConfig(), description)
    assert (len(plain.choose_N), len(plain.report_N)) == (11, 10)
    assert sorted(plain.all_N) == sorted(test_N)
    assert np.array_equal(plain.all_N, images_to_judge(RunConfig(), description).all_N)
    assert not np.array_equal(plain.choose_N, images_to_judge(RunConfig.of(seed=1), description).choose_N)
    config = RunConfig.of(valid_fraction=0.25)
    validated = images_to_judge(config, description)
    assert np.array_equal(validated.choose_N, split_training(config, description)[1])
    assert np.array_equal(validated.report_N, test_N)
    assert "16 validation images; the test images are only reported" in validated.about
    # Nor is int8 calibrated on what decides.
    assert np.array_equal(images_to_calibrate(config, description), split_training(config, description)[0])
    assert len(images_to_calibrate(RunConfig(), description)) == 64


@pytest.mark.parametrize("asked", [ASKED, Conditions(min_accuracy=0.8, max_latency_ms=5.0)])
def test_the_report_is_the_same_whenever_it_is_written(run, asked, stores_for):
    folder = LighteningFolder(run, SETTINGS)
    folder.note("first", judged(accuracy=0.91), 0.0)
    for degree, speed in ((1, 200.0), (3, 2000.0)):
        made = judged(accuracy=0.9, images_per_s=speed, latency_ms=1000 / speed)
        folder.note_attempt(Attempt(degree=degree, judged=made, verdict=asked.verdict(made)), asked, 0.0)
    for what in ("first", "degree-001", "degree-003"):
        write_model(folder, what)
    result = Lightened(
        folder=folder, conditions=asked, method=Method.AUTO, end=LoopEnd.SATISFIED, reason="all conditions hold",
        choice=choose(folder.at_hand(), asked), closest="degree-003", third=None,
        images=images_to_judge(RunConfig(), stores_for(RunConfig.of(max_train=64, max_test=20)).description),
    )  # fmt: skip
    report = write_report(result)
    files = [report, *(folder.path / name for name in PLOT_FILES)]
    written = [path.read_bytes() for path in files]
    text = written[0].decode()
    assert "Result: **satisfied** (all conditions hold). Chosen: " in text
    assert "on 10 of 20 test images, since the run has no valid-fraction; the others are only reported." in text
    told = as_json(result)
    assert (told["choice"]["what"], told["closest"], told["method"]) == (result.choice.what, "degree-003", "auto")
    assert json.loads(json.dumps(told)) == told
    assert written[1].startswith(b"\x89PNG") and b"</svg>" in written[2]
    write_report(result)
    assert [path.read_bytes() for path in files] == written
