"""`psl leak`, and what else is done with the trained model of a run whose smashed data are codes."""

import html
import json
import re

import numpy as np
import pytest
import torch

from psl_flower.cli.main import main
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.inference.trained_model import load_trained_model, save_trained_model
from psl_flower.runs.folder import Status
from psl_flower.stores.prepare import prepare_stores
from tests.unit.tiny_run import make_run

CODE = {"protection": "code", "code_size": 6, "cut": "layer4", "backbone_width": 8, "rounds": 2, "batch_size": 8}
CODE |= {"margin": 9, "context": 8}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    path = tmp_path_factory.mktemp("workspace")
    run, _ = make_run(path, "codes", **CODE)
    stores = prepare_stores(run.read_config().replace(workspace=str(path)))
    with stores.opened() as opened:
        trainer = OneProcessTrainer(run.read_config(), stores.description, stores.labels, opened)
        trainer.train(10)
    save_trained_model(run.model, trainer.net.state_dict())
    run.write_status(Status(state="completed", step=10, total_steps=10))
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
    assert {finding["knows"] for finding in report["findings"]} == {"codes", "logits", "class", "nothing"}
    # Two epochs, whose looks are had by training again, and the finished network.
    assert {(f["level"], f["looks"]) for f in report["findings"] if f["level"]} == {
        ("unpaired", 1), ("query", 1), ("weights", 1), ("query", 3), ("weights", 3),
    }  # fmt: skip
    again = report["replayed"]
    assert (again["shown"], again["joined"], again["exact"]) == (2, 2, True)
    assert report["labels"]["looks"] == 2 and len(report["seams"]) == 4
    assert "(with 3 looks: SSIM" in report["verdict"]
    place = workspace / "runs" / "codes" / "leak"
    assert json.loads((place / "report.json").read_text()) == report
    page = (place / "page.html").read_text()
    assert report["verdict"] in html.unescape(page) and page.count("data:image/png;base64,") == 7


def test_leak_tells_people_and_can_do_without_training(psl):
    status, out, _ = psl("leak", "--run", "codes", *FEW, "--looks", "0")
    assert status == 0
    assert "24 bits an image and look" in out and "30 other training images (of 100 asked)" in out
    assert "One look, that of the finished network, was attacked" in out and "guesses the class" not in out
    status, out, _ = psl("leak", "codes", *FEW, "--looks", "1")
    assert status == 0
    assert "1 of the 2 looks that the server had in training are joined" in out and "bit by bit" in out
    assert "from the gradients of 1 look" in out


def test_a_quick_audit_says_that_it_is_weaker(psl, workspace):
    status, out, err = psl("leak", "codes", "--quick", "--victims", "10", "--epochs", "2", "--auxiliary", "20")
    assert status == 0
    said = (
        "A reduced audit: its attackers had at most 2 passes in place of 30 and 20 auxiliary images in place of up to "
        "5000. A full one may find more."
    )
    assert said in " ".join(out.split())
    assert re.search(
        r"attacks by decoders of up to 2 passes over 20 images: about [\d:]+ at most, with \d+ threads?\n", err
    )
    assert "One look, that of the finished network, was attacked" in out
    place = workspace / "runs" / "codes" / "leak"
    assert said in html.unescape((place / "page.html").read_text())
    assert json.loads((place / "report.json").read_text())["reduced"] == said


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
