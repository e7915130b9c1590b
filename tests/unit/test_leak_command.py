"""`psl leak`, and what else is done with the trained model of a run whose smashed data are codes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from psl_flower.cli.main import main
from psl_flower.inference.trained_model import load_trained_model
from tests.unit.tiny_run import make_run

CODE = {"protection": "code", "code_size": 6, "cut": "layer4", "backbone_width": 8}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    path = tmp_path_factory.mktemp("workspace")
    make_run(path, "codes", **CODE)
    return path


@pytest.fixture
def psl(workspace, monkeypatch, capsys):
    monkeypatch.setenv("PSL_WORKSPACE", str(workspace))

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


FEW = ["--victims", "10", "--auxiliary", "100", "--epochs", "1"]


def test_leak_reports_and_shows(psl, workspace):
    status, out, _ = psl("leak", "codes", *FEW, "--json")
    assert status == 0
    report = json.loads(out)
    # 40 training images, 10 of which are attacked; 4 patches of 6 signs.
    assert (report["victims"], report["auxiliary"], report["auxiliary_asked"], report["bits"]) == (10, 30, 100, 24)
    assert {finding["knows"] for finding in report["findings"]} == {"codes", "class", "nothing"}
    assert "SSIM" in report["verdict"]
    place = workspace / "runs" / "codes" / "leak"
    assert json.loads((place / "report.json").read_text()) == report
    assert Image.open(place / "images.png").size == (3 * 16 * 3, 3 * 16 * 3)
    status, out, _ = psl("leak", "--run", "codes", *FEW)
    assert status == 0
    assert report["verdict"] in out and "24 bits an image and look" in out and "30 other images (of 100 asked)" in out


REFUSED = [
    (["leak", "codes", "--victims", "30"], 1, "victims: of 40 training images 10 are left to learn from"),
    (["leak", "none"], 1, "none"),
    (["leak", "codes", "--victims", "1"], 2, "victims"),
    (
        ["lighten", "codes", "--local", "--max-drop", "0.5", "--min-speed", "1"],
        1,
        "protection: its channels cannot be pruned",
    ),
]


@pytest.mark.parametrize(("arguments", "status", "words"), REFUSED)
def test_what_cannot_be_is_refused_in_a_line(psl, arguments, status, words):
    found, out, err = psl(*arguments)
    assert (found, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_network_with_codes_is_exported_with_its_answers(psl, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    status, _, err = psl("export", "--run", "codes", "--format", kind, "--out", tmp_path / "model")
    assert status == 0, err
    assert (tmp_path / "model").stat().st_size > 1000


def test_a_trained_model_with_codes_predicts_also_without_an_upper(workspace):
    from psl_flower.runs.folder import open_run

    trained = load_trained_model(open_run(workspace, "codes"))
    images = trained.prepare([np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8) for _ in range(3)])
    smashed = trained.smash(images)
    assert set(smashed.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(trained.join(smashed), trained.logits(images))
    assert not torch.equal(trained.join(smashed, absent=[1]), trained.logits(images))
