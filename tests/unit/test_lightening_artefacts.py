"""The ONNX files of a light model: their answers, that the whole is its parts, and how their speed is measured."""

import json
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.inputs import normalise
from psl_flower.errors import ExportError, RunError
from psl_flower.inference.evaluation import images_in
from psl_flower.inference.onnx_files import open_session, to_onnx
from psl_flower.lightening import artefacts, judging
from psl_flower.lightening.artefacts import LOWER_FILE, WHOLE_FILE, make_float, make_int8, upper_file
from psl_flower.lightening.judging import (
    answers,
    measure_speed,
)
from psl_flower.lightening.quantising import folded
from psl_flower.models.architectures import BackboneSize

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
