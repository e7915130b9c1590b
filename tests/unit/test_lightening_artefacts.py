"""The ONNX files of a light model: what they answer, that the whole is its parts, how they are measured and kept."""

import json
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from psl_flower.config import RunConfig
from psl_flower.engine.automatic_settings import split_training
from psl_flower.engine.build import Blueprint
from psl_flower.engine.inputs import normalise
from psl_flower.errors import ExportError, RunError
from psl_flower.inference.evaluation import images_in
from psl_flower.inference.onnx_files import open_session, to_onnx
from psl_flower.lightening import artefacts, judging
from psl_flower.lightening.artefacts import LOWER_FILE, WHOLE_FILE, make_float, make_int8, upper_file
from psl_flower.lightening.choosing import choose, faster
from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.judging import (
    Speed,
    answers,
    images_to_calibrate,
    images_to_judge,
    measure_speed,
    together,
)
from psl_flower.lightening.method import Lightened
from psl_flower.lightening.names import degree_name
from psl_flower.lightening.quantising import folded
from psl_flower.lightening.report import PLOT_FILES, as_json, newest, pareto, rows, write_report
from psl_flower.lightening.search import Attempt, Conditions, End, Verdict
from psl_flower.lightening.settings import LighteningSettings, Method
from psl_flower.lightening.turns import measure_in_turns, needs_turns
from psl_flower.models.architectures import BackboneSize
from psl_flower.runs.folder import RunFolder
from tests.unit.test_lightening_search import judged

SIZE = BackboneSize(depths=(1, 1, 1, 1), widths=(8, 16, 16, 24))


@pytest.fixture(scope="module")
def made(stores_for, tmp_path_factory):
    """Return a small network, its images, and its files in float32 and int8; three Uppers share four patches."""
    config = RunConfig.of(max_train=64, max_test=20, uppers=3, margin=3, context=2, padding="replicate")
    stores = stores_for(config)
    description = stores.description
    net = Blueprint(config, description).network(SIZE)
    train = torch.cat([images for images, _ in images_in(stores, description.samples_of("train"), 64)])
    test = torch.cat([images for images, _ in images_in(stores, description.samples_of("test"), 64)])
    with torch.no_grad():
        for _ in range(20):
            net.train()(normalise(train, description.mean, description.std))
    plain = folded(net.eval().requires_grad_(False))
    made_float = make_float(plain, description)
    int8 = make_int8(description, made_float, train, 7)
    folder = tmp_path_factory.mktemp("light")
    return SimpleNamespace(
        net=net, description=description, test=test, float32=made_float.save(folder / "float32"),
        int8=int8.save(folder / "int8"),
    )  # fmt: skip


def logits(path, images):
    return open_session(path, 1).run(["logits"], {"images": (images.float() / 255).numpy()})[0]


def test_float_files_answer_as_the_network(made):
    expected = made.net(normalise(made.test, made.description.mean, made.description.std)).numpy()
    np.testing.assert_allclose(logits(made.float32, made.test), expected, rtol=1e-3, atol=1e-4)


def test_int8_files_answer_nearly_as_the_network(made):
    exact, light = logits(made.float32, made.test), logits(made.int8, made.test)
    scale = np.abs(exact - exact.mean(0)).max()
    assert 0 < np.abs(light - exact).max() < 0.3 * scale


def test_the_whole_answers_exactly_as_its_parts(made):
    """Uppers on their own patches, then the Lower: bit for bit the assembled file's answer, for any batch."""
    grid = made.net.grid
    for number in (1, 7):
        patches = grid.split((made.test[:number].float() / 255).numpy())
        smashed = {}
        for m in range(3):
            session = open_session(made.int8.parent / upper_file(m), 1)
            positions = made.description.positions_of(m)
            flat = np.ascontiguousarray(patches[:, positions]).reshape(-1, *patches.shape[2:])
            maps = session.run(["smashed"], {"patches": flat})[0]
            maps = maps.reshape(number, len(positions), *maps.shape[1:])
            smashed |= {p: maps[:, k] for k, p in enumerate(positions)}
        joined = np.stack([smashed[p] for p in range(grid.num_patches)], 1)
        found = open_session(made.int8.parent / LOWER_FILE, 1).run(["logits"], {"smashed": joined})[0]
        assert np.array_equal(found, logits(made.int8, made.test[:number]))


def test_weights_are_kept_in_int8(made):
    for name in (WHOLE_FILE, LOWER_FILE, upper_file(2)):
        model = onnx.load(made.int8.parent / name)
        onnx.checker.check_model(model)
        large = [t for t in model.graph.initializer if len(t.dims) == 4 and t.data_type != TensorProto.INT64]
        assert {tensor.data_type for tensor in large} == {TensorProto.INT8}
    weights = [
        t for t in onnx.load(made.int8).graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4
    ]
    assert max(np.abs(onnx.numpy_helper.to_array(w).astype(int)).max() for w in weights) == 64
    entries = {entry.key: entry.value for entry in onnx.load(made.int8).metadata_props}
    assert json.loads(entries["image_size"]) == [16, 16]


def test_answers_are_the_files_own(made):
    found = answers(open_session(made.int8, 1), made.test.split(6))
    assert np.array_equal(found, logits(made.int8, made.test).argmax(1))


def test_speed_is_the_median_of_warm_runs(made):
    """By a clock of the test's own: three warm-ups are not counted, and one slow run of many changes nothing."""
    runs, now = [], [0.0]

    class Session:
        def run(self, _, inputs):
            number = len(inputs["images"])
            runs.append(number)
            slow = len(runs) in (1, 2, 3, 10)
            now[0] += 60.0 if slow else 0.01 * number

    speed = measure_speed(Session(), made.test[:8], clock=lambda: now[0])
    assert speed.images_per_s == pytest.approx(100.0)
    assert speed.latency_ms == pytest.approx(10.0)
    assert runs.count(8) >= 3 + 15
    assert runs.count(1) >= 3 + 100  # a second at least
    assert (speed.images_per_s_spread, speed.latency_spread) == (0.0, 0.0)


def test_the_spread_of_a_speed_is_that_of_its_parts(made, monkeypatch):
    """A machine that slows down by a fifth from the first part of the measurement to the last."""
    now, runs = [0.0], []

    class Session:
        def run(self, _, inputs):
            runs.append(len(inputs["images"]))
            timed = max(0, runs.count(runs[-1]) - 3 - 1)
            now[0] += 1.0 + 0.05 * (timed // 3)

    monkeypatch.setattr(judging, "_LEAST_S", 0.0)
    speed = measure_speed(Session(), made.test[:8], clock=lambda: now[0])
    assert speed.latency_ms == pytest.approx(1100.0)
    assert speed.latency_spread == pytest.approx(0.1 / 1.1)
    assert speed.images_per_s_spread == pytest.approx(0.1 / 1.1)


def test_one_thread_is_timed_by_its_processor_time(made, monkeypatch):
    """What sleeps, as a thread does that others keep from the processor, is not slower; several threads are."""

    class Sleepy:
        def __init__(self, threads):
            self._session = open_session(made.int8, threads)
            self.get_session_options = self._session.get_session_options

        def run(self, *given):
            time.sleep(0.02)
            return self._session.run(*given)

    monkeypatch.setattr(judging, "_LEAST_S", 0.0)
    one, several = (measure_speed(Sleepy(threads), made.test[:8]).latency_ms for threads in (1, 2))
    assert one < 20 <= several


def test_an_upper_that_never_trained_is_exported_too(made):
    """Its biases are equal, so the exporter would keep one of them; the other Uppers' differ."""
    plain = folded(made.net)
    with torch.no_grad():
        for name, parameter in plain.uppers[0].named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    artefacts._check(plain, made.description, make_float(plain, made.description).whole)


def test_a_wrong_export_is_refused(made):
    plain = folded(made.net)
    with torch.no_grad():
        plain.uppers[0].conv1.bias += 0.01
    with pytest.raises(ExportError, match=r"model\.onnx: .*logits differ by"):
        artefacts._check(plain, made.description, onnx.load(made.float32))


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Levitate", ["images"], ["logits"])],
        "strange",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "strange.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"strange\.onnx: onnxruntime cannot run this model: .*Levitate"):
        open_session(path, 1)
    path.write_bytes(b"no model at all")
    with pytest.raises(ExportError, match="cannot run this model"):
        open_session(path, 1)
    with pytest.raises(RunError, match="there is no such file"):
        open_session(tmp_path / "absent.onnx", 1)


def test_an_operator_that_onnx_lacks_is_named():
    class Eigen(torch.nn.Module):
        def forward(self, matrix):
            return torch.linalg.eigvals(matrix).abs()

    with pytest.raises(ExportError, match=r"^this network cannot be written as ONNX: .*aten\.linalg_eig"):
        to_onnx(Eigen(), (torch.rand(2, 3, 3),), ["matrix"], ["values"])


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
    with pytest.raises(RunError, match=r"log\.jsonl: cannot be read: .* to start over"):
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
        folder=folder, conditions=asked, method=Method.AUTO, end=End.SATISFIED, reason="all conditions hold",
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
