"""Exports: the same answers as the network, in a process that knows nothing of this project."""

import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image
from tiny_run import make_run

from psl_flower.errors import ConfigError, ExportError, RunError
from psl_flower.inference import export
from psl_flower.inference.export import export_onnx, export_torch
from psl_flower.inference.trained_model import Normalised, load_trained_model
from tests.paths import ROOT

# Run in a folder of its own, isolated (-I), with torch only.
PLAIN_TORCH = """
import sys, json, torch
extra = {"model.json": ""}
network = torch.export.load(sys.argv[1], extra_files=extra).module()
torch.save([network(images) for images in torch.load(sys.argv[2], weights_only=True)], sys.argv[3])
assert not [name for name in sys.modules if name.startswith(("psl_flower", "torchvision"))]
print(extra["model.json"])
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a network of two Uppers on four overlapping patches of a padded image, with context."""
    settings = {"patch_size": (9, 9), "stride": (8, 8), "fit": "pad", "uppers": 2}
    settings |= {"padding": "replicate", "margin": 3, "context": 2}
    return load_trained_model(make_run(tmp_path_factory.mktemp("workspace"), **settings)[0])


def batches(trained):
    generator = torch.Generator().manual_seed(9)
    return [torch.rand(n, 1, 16, 16, generator=generator) for n in (1, 3, 8)]


def answers(trained):
    with torch.no_grad():
        return [Normalised(trained.net, trained.description)(images) for images in batches(trained)]


def test_torch_file_needs_only_torch(tmp_path, tiny):
    exported = export_torch(tiny, tmp_path / "model.pt2")
    assert exported.num_bytes == exported.path.stat().st_size
    assert exported.relative_difference <= 1e-4
    torch.save(batches(tiny), tmp_path / "in.pt")
    command = [sys.executable, "-I", "-c", PLAIN_TORCH, exported.path, tmp_path / "in.pt", tmp_path / "out.pt"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert json.loads(json.loads(said)["class_names"]) == [str(k) for k in range(10)]
    for found, expected in zip(torch.load(tmp_path / "out.pt", weights_only=True), answers(tiny), strict=True):
        torch.testing.assert_close(found, expected)
    assert str(export.__file__).rpartition("/")[0].encode() not in exported.path.read_bytes()


def test_onnx_file_is_self_contained(tmp_path, tiny):
    exported = export_onnx(tiny, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert exported.relative_difference <= 1e-4
    content = exported.path.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for images, expected in zip(batches(tiny), answers(tiny), strict=True):
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)
    entries = session.get_modelmeta().custom_metadata_map
    assert json.loads(entries["class_names"])[7] == "7"
    assert json.loads(entries["image_size"]) == [16, 16]
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert str(export.__file__).rpartition("/")[0].encode() not in content


@pytest.mark.parametrize("size", [(40, 23), (16, 16)])
def test_the_example_for_onnxruntime_answers_as_the_network_does(tmp_path, tiny, monkeypatch, size):
    """The code block of docs/researcher.md, as it stands there, on a turned photograph in colour."""
    page = (ROOT / "docs" / "researcher.md").read_text("utf-8")
    (example,) = re.findall(r"(?:^    .*\n)*^    session = onnxruntime(?:.*\n)(?:^    .*\n)*", page, re.MULTILINE)
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (*size, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "photo.png", exif=exif)
    export_onnx(tiny, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(textwrap.dedent(example), found)
    (expected,) = tiny.predict("photo.png")
    probabilities = torch.tensor(found["logits"]).softmax(1)
    torch.testing.assert_close(probabilities, torch.tensor([expected.probabilities]), rtol=1e-4, atol=1e-5)
    upright = tiny.predict([picture])[0].probabilities
    assert max(abs(a - b) for a, b in zip(upright, expected.probabilities, strict=True)) > 1e-4  # the turn counts


def test_a_wrong_file_is_not_written(tmp_path, tiny, monkeypatch):
    """The check tells a difference: here the network that it is compared with is another one."""
    check = export.check_answers

    def with_another(name, description, network, exported):
        with torch.no_grad():
            network.net.lower.fc.bias += 0.01
        return check(name, description, network, exported)

    monkeypatch.setattr(export, "check_answers", with_another)
    with pytest.raises(ExportError, match=r"model\.pt2: not written: its logits differ"):
        export_torch(tiny, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_answers_that_are_not_numbers_are_refused(tmp_path, tiny, monkeypatch):
    class NotNumbers(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()

        def forward(self, images):
            return torch.full((len(images), 10), torch.nan)

    with pytest.raises(ExportError, match="x: not written: its logits differ by nan"):
        export.check_answers("x", tiny.description, Normalised(tiny.net, tiny.description), NotNumbers())
    monkeypatch.setattr(export, "OnnxModule", NotNumbers)
    with pytest.raises(ExportError, match="not written"):
        export_onnx(tiny, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_packages_that_are_not_installed_are_named(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="onnxscript, which is not installed"):
        export_onnx(tiny, tmp_path / "model.onnx")


def test_unwritable_targets_are_refused_before_the_work(tmp_path, tiny):
    with pytest.raises(RunError, match="is a folder"):
        export_onnx(tiny, tmp_path)
    with pytest.raises(RunError, match="there is no folder"):
        export_torch(tiny, tmp_path / "absent" / "model.pt2")
