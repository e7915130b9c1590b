"""The program: exit statuses, one-line errors, and the commands for trained models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import make_run

from psl_flower.cli import main as program
from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.errors import PslError
from psl_flower.inference.export import EXPORTERS, Exported
from psl_flower.runs.folder import create_run
from tests.paths import ROOT
from tests.settings import known_settings


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    path = tmp_path_factory.mktemp("workspace")
    make_run(path)
    return path


@pytest.fixture
def psl(workspace, monkeypatch, capsys):
    """Return what runs a command in the workspace and returns (exit status, standard output, standard error)."""
    monkeypatch.setenv("PSL_WORKSPACE", str(workspace))

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for i, path in enumerate((folder / "a.png", folder / "b.jpg", folder / "deep" / "c.bmp")):
        Image.new("RGB", (20 + i, 30), (80 * i, 0, 0)).save(path)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_predict_takes_images_by_their_content_and_says_what_it_leaves_out(psl, pictures):
    for name, kind in (("e.jfif", "JPEG"), ("f.jp2", "JPEG2000"), ("g.avif", "AVIF"), ("h", "PNG")):
        Image.new("RGBA" if name == "h" else "RGB", (20, 30)).save(pictures / name, kind)
    (pictures / "i.NEF").write_bytes((pictures / "a.png").read_bytes())
    os.mkfifo(pictures / "pipe.png")
    Path(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.png")).write_bytes((pictures / "a.png").read_bytes())
    status, out, err = psl("predict", pictures, "--json")
    report = json.loads(out)
    assert status == 1
    good = {Path(image["file"]).name for image in report["images"] if "classes" in image}
    assert good >= {"a.png", "b.jpg", "e.jfif", "f.jp2", "g.avif", "h"} and len(good) == 8
    (bad,) = [image for image in report["images"] if "error" in image]
    assert "i.NEF" in bad["error"] and "convert it" in bad["error"]
    left = {(entry["reason"], entry["ending"]): entry["count"] for entry in report["left_out"]}
    assert left == {("not an image", ".txt"): 1, ("neither a file nor a folder", ".png"): 1}
    assert report["notes"] == [f"1 image, such as {pictures / 'h'}: transparent pixels were put on white"]
    status, out, err = psl("predict", pictures / "pipe.png", pictures / "a.png")
    assert status == 1 and "pipe.png: is not a regular file" in err and "a.png" in out


def test_predict_walks_folders(psl, pictures):
    status, out, err = psl("predict", pictures, pictures / "a.png", "--top", 2)
    assert (status, err) == (0, f"left out: 1 .txt (not an image), such as {pictures / 'notes.txt'}\n")
    names = [line.partition(":")[0] for line in out.splitlines()]
    assert names == [str(pictures / name) for name in ("a.png", "b.jpg", "deep/c.bmp", "a.png")]
    assert all(line.count("%") == 2 for line in out.splitlines())
    status, out, _ = psl("predict", pictures, "--json", "--top", 99)
    report = json.loads(out)
    assert (status, report["run"], len(report["images"])) == (0, "tiny", 3)
    likeliest = report["images"][0]["classes"]
    assert len(likeliest) == 10
    assert sum(entry["probability"] for entry in likeliest) == pytest.approx(1, abs=1e-5)
    assert likeliest == sorted(likeliest, key=lambda entry: -entry["probability"])


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(psl, pictures, tmp_path):
    broken, absent, empty = pictures / "broken.png", tmp_path / "absent.png", tmp_path / "empty"
    broken.write_bytes((pictures / "a.png").read_bytes()[:40])
    empty.mkdir()
    text = pictures / "notes.txt"
    status, out, err = psl("predict", absent, empty, text, pictures)
    assert status == 1
    assert len(out.splitlines()) == 3
    assert err.count("left out: 1 .txt (not an image), such as ") == 1
    errors = [line for line in err.splitlines() if not line.startswith("left out: ")]
    assert all(line.startswith("error: ") for line in errors)
    for path, problem in ((absent, "No such file"), (empty, "no images"), (text, "decoded"), (broken, "decoded")):
        assert sum(str(path) in line and problem in line for line in errors) == 1
    assert len(errors) == 4
    assert "dataset" not in err
    status, out, err = psl("predict", "--json", absent, pictures / "a.png")
    assert (status, err) == (1, "")
    assert ["error" in image for image in json.loads(out)["images"]] == [True, False]


def test_evaluate(psl):
    status, out, _ = psl("evaluate", "--json")
    report = json.loads(out)
    assert status == 0
    assert (report["run"], report["dataset"], report["images"], report["run_accuracy"]) == ("tiny", "digits", 20, 0.25)
    assert sum(entry["images"] for entry in report["classes"]) == 20
    right = sum(entry["images"] * (entry["accuracy"] or 0) for entry in report["classes"])
    assert right == pytest.approx(20 * report["accuracy"])
    status, out, err = psl("evaluate", "--run", "tiny", "--dataset", "digits", "--max-test", 7)
    assert (status, err) == (0, "")
    assert "7 test images of digits" in out
    assert "25.00%" in out
    # As settings, too; the model has a size of its own.
    status, out, err = psl("evaluate", "--dataset", "digits", "max-test=7", "image-size=16")
    assert (status, err) == (0, "") and "7 test images of digits" in out
    status, _, err = psl("evaluate", "--dataset", "digits", "image-size=8x8")
    assert status == 1 and "image-size: 8x8 is given, but the model takes 16x16" in err
    status, _, err = psl("evaluate", "--dataset", "digits", "--max-test", 7, "max-test=8")
    assert status == 1 and "--max-test 7 and max-test=8 contradict each other" in err
    status, _, err = psl("evaluate", "--dataset", "/nowhere/at/all")
    assert status == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_evaluating_another_dataset_says_what_was_read_of_it(psl, tmp_path):
    for split, count in (("train", 2), ("test", 1)):
        for digit in range(10):
            folder = tmp_path / "digits" / split / str(digit)
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("L", (16, 16), 20 * digit + k + 5 * count).save(folder / f"{k}.png")
    (tmp_path / "digits" / "test" / "3" / "notes.txt").write_text("not an image")
    status, out, err = psl("evaluate", "--dataset", tmp_path / "digits", "--json")
    assert status == 0, err
    report = json.loads(out)
    taken = {split["name"]: sum(split["classes"].values()) for split in report["account"]["splits"]}
    assert (report["images"], taken) == (10, {"train": 20, "test": 10})
    (left,) = report["account"]["left_out"]
    assert (left["reason"], left["count"], left["example"]) == ("not an image", 1, "test/3/notes.txt")
    status, out, err = psl("evaluate", "--dataset", tmp_path / "digits")
    assert "left out: 1 .txt (not an image), such as test/3/notes.txt" in out + err


def test_evaluate_writes_a_table_of_classes(psl, tmp_path):
    status, out, _ = psl("evaluate", "--csv", tmp_path / "classes.csv")
    assert status == 0
    assert "balanced accuracy" in out and "macro F1" in out and "class \\ predicted" in out
    report = json.loads(psl("evaluate", "--json")[1])
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert len(lines) == 1 + len(report["classes"])
    counts = [[int(cell) for cell in line.split(",")[5:]] for line in lines[1:]]
    assert counts == report["confusion"]
    assert sum(map(sum, counts)) == report["images"]
    assert sum(counts[k][k] for k in range(10)) / report["images"] == pytest.approx(report["accuracy"])
    assert 0 <= report["balanced_accuracy"] <= 1 and 0 <= report["auc"] <= 1
    status, _, err = psl("evaluate", "--csv", tmp_path / "x.csv", "--absent-curve")
    assert status == 2 and "--csv does not go with --absent-curve" in err


def test_evaluate_without_uppers(psl, workspace, tmp_path):
    status, out, err = psl("evaluate", "--absent-curve", "--max-test", 9)
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["absent", "0", "1"]
    assert out.splitlines()[-1] == str(workspace / "runs" / "tiny" / "absent.png")
    status, out, _ = psl("evaluate", "--absent-curve", "--json", "--out", tmp_path / "curve")
    report = json.loads(out)
    assert (status, report["images"], len(report["absent"])) == (0, 20, 2)
    assert report["absent"][0]["accuracy"] == json.loads(psl("evaluate", "--json")[1])["accuracy"]
    assert report["files"] == [str(tmp_path / "curve" / name) for name in ("absent.csv", "absent.png")]
    assert all(os.path.getsize(file) for file in report["files"])
    status, _, err = psl("evaluate", "--out", tmp_path)
    assert status == 2
    assert "--out goes with --absent-curve" in err


def test_export(psl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = psl("export", "--format", "torch")
    assert status == 0
    assert out.startswith("tiny.pt2: ")
    assert "differ by" in out
    assert torch.export.load("tiny.pt2").module()(torch.zeros(4, 1, 16, 16)).shape == (4, 10)
    Path("tiny.pt2").write_bytes(b"somebody else's")
    status, _, err = psl("export", "--format", "torch")
    assert status == 1 and "tiny.pt2 exists already" in err and "--force" in err
    assert Path("tiny.pt2").read_bytes() == b"somebody else's"

    def pretend(trained, path):
        return Exported(path=path, num_bytes=7, difference=1e-7, relative_difference=1e-6)

    monkeypatch.setitem(EXPORTERS, "onnx", (".onnx", pretend))
    Path("it.onnx").write_bytes(b"old")
    status, out, _ = psl("export", "--format", "onnx", "--json", "--out", "it.onnx", "--force")
    expected = {"bytes": 7, "difference": 1e-7, "relative_difference": 1e-6}
    assert (status, json.loads(out)) == (0, {"run": "tiny", "format": "onnx", "file": "it.onnx"} | expected)


def test_runs(psl, tmp_path):
    status, out, _ = psl("runs")
    assert status == 0
    assert [line.split()[:5] for line in out.splitlines()[1:]] == [["tiny", "completed", "4/4", "25.00%", "yes"]]
    (run,) = json.loads(psl("runs", "--json")[1])["runs"]
    assert (run["run"], run["state"], run["accuracy"], run["model"]) == ("tiny", "completed", 0.25, True)
    assert "no runs yet" in psl("runs", "--workspace", tmp_path)[1]


def test_a_run_without_a_model_and_no_runs(psl, tmp_path, workspace):
    status, _, err = psl("predict", "x.png", "--run", "absent")
    assert status == 1
    assert "no such run (there: tiny)" in err
    status, _, err = psl("predict", "tiny", "x.png")
    assert status == 2
    assert "tiny is a run" in err and "--run tiny" in err
    status, _, err = psl("evaluate", "--workspace", tmp_path)
    assert status == 1
    assert err.startswith("error: ")
    assert "no runs yet" in err
    unfinished = create_run(tmp_path, "unfinished", "digits")
    unfinished.write_config(RunConfig())
    for command in (["evaluate"], ["export", "--format", "onnx"], ["predict", "x.png"]):
        status, _, err = psl(*command, "--workspace", tmp_path, "--run", "unfinished")
        assert status == 1
        assert "may not have finished" in err
        assert len(err.splitlines()) == 1
    status, _, err = psl("evaluate", "--workspace", tmp_path)
    assert status == 1
    assert "none of the 1 runs has a model" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["predict"], ["predict", "x.png", "--top", "0"], ["export"], ["export", "--format", "keras"],
        ["evaluate", "--max-test", "-1"], ["runs", "--unknown"],
    ],
)  # fmt: skip
def test_usage_errors(psl, arguments):
    status, out, err = psl(*arguments)
    assert (status, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


def test_help_of_every_command(psl):
    status, out, _ = psl("--help")
    assert status == 0
    commands = {line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip() and line[2] != " "}
    assert {"predict", "evaluate", "export", "runs", "keygen", "ingest", "verify", "restore"} <= commands
    for command in sorted(commands):
        status, out, _ = psl(command, "--help")
        assert status == 0
        assert f"psl {command}" in out
        assert "\\" not in out
    assert psl("--version")[0] == 0


def test_settings_are_listed_and_found_from_train(psl):
    status, out, _ = psl("settings")
    entries = [line for line in out.splitlines() if line[0] not in " #"]
    assert (status, [line.partition("=")[0] for line in entries]) == (0, list(known_settings()))
    assert all(len(line) > 40 for line in entries)  # each is explained
    assert psl("settings", "checkpoint-every")[1].count("\n") == 1
    assert psl("settings", "no such thing")[0] == 1
    assert "psl settings" in psl("train", "--help")[1]


def test_train_refuses_before_it_starts_anything(psl, tmp_path):
    status, _, err = psl("train", "rouns=3")
    assert status == 2
    assert "did you mean rounds?" in err
    status, _, err = psl("train", "resume=missing", "--workspace", tmp_path)
    assert status == 1
    assert f"{tmp_path}/runs/missing: no such run" in err
    status, _, err = psl("train", "workspace=here", "--workspace", tmp_path)
    assert status == 2
    assert "workspace is given twice" in err


@pytest.mark.parametrize(
    ("raised", "status", "says"),
    [
        (PslError("two\nlines"), 1, "error: two lines\n"),
        (
            PermissionError(13, "no", "/srv/x"),
            1,
            "error: /srv/x: permission denied; let this user at it (chown, chmod)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_errors_end(monkeypatch, capsys, raised, status, says):
    def fail(called=""):
        raise raised

    monkeypatch.setattr(program, "make_app", fail)
    assert (main(["runs"]), capsys.readouterr().err) == (status, says)
    if isinstance(raised, PslError):
        monkeypatch.setenv("PSL_DEBUG", "1")
        main(["runs"])
        assert "Traceback" in capsys.readouterr().err


def start(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True, timeout=60, **options
    )


def test_importing_the_program_is_light():
    code = "import sys, psl_flower.cli.main; print([m for m in ('torch', 'PIL', 'onnx', 'numpy') if m in sys.modules])"
    assert start("-c", code, stdout=subprocess.PIPE).stdout.strip() == "[]"


def test_a_reader_that_has_gone():
    read, write = os.pipe()
    os.close(read)
    ended = start("-m", "psl_flower.cli.main", "--version", stdout=write)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


IN_PLACE = [
    (["predict"], "name images or folders of images, or a run with --in-place"),
    (["predict", "a.png", "--without", "1"], "go with --in-place"),
    (["predict", "a.png", "--in-place", "tiny"], "leave files out"),
    (["predict", "--in-place", "tiny", "--run", "other"], "two runs are named, tiny and --run other"),
    (["evaluate", "tiny", "other"], "expected one run and KEY=VALUE, got tiny other"),
    (["export", "tiny", "--run", "other", "--format", "onnx"], "two runs are named"),
    (["predict", "--in-place", "tiny", "--split", "all"], "predict-split: expected one of test, train"),
    (["predict", "--in-place", "tiny", "--without", "x"], "predict-without: expected numbers of Uppers"),
]


@pytest.mark.parametrize(("arguments", "words"), IN_PLACE)
def test_what_does_not_go_together_is_a_usage_error(psl, arguments, words):
    assert IN_PLACE
    status, out, err = psl(*arguments)
    assert (status, out) == (2, "")
    assert words in " ".join(err.split())


def test_a_prediction_in_place_that_cannot_be_is_refused_before_flower_starts(psl):
    status, _, err = psl("predict", "--in-place", "never")
    assert status == 1
    assert "no such run (there: tiny" in err
    status, _, err = psl("predict", "--in-place", "tiny")
    assert status == 1
    assert "runs/tiny: the run has no checkpoint of a step yet, so there is no model to predict with" in err


LIGHTEN = [
    (["tiny"], 2, "one condition of accuracy"),
    (["tiny", "--max-drop", "0.1", "--min-speed", "9", "--target", "attic"], 2, "expected edge, or node and its name"),
    (["tiny", "--max-drop", "0.1", "--min-speed", "9", "--target", "node"], 2, "belong together"),
    (["tiny", "attic", "--max-drop", "0.1", "--min-speed", "9"], 2, "belong together"),
    (["tiny", "--target", "node", "attic", "--local", "--max-drop", "0.1", "--min-speed", "9"], 2, "knows no nodes"),
    (["never", "--max-drop", "0.1", "--min-speed", "9"], 1, "no such run (there: tiny"),
    (["tiny", "--local"], 2, "one condition of accuracy"),
    (["tiny", "--local", "--min-accuracy", "0.9"], 2, "one condition of speed"),
    (["tiny", "--local", "--min-accuracy", "1.5", "--min-speed", "9"], 2, "'--min-accuracy': 1.5 is not in the range 0<=x<=1"),
    (["tiny", "--local", "--max-drop", "0.1", "--min-speed", "9", "--max-latency-ms", "9"], 2, "one condition of speed"),
    (["tiny", "--local", "--max-drop", "0.1", "--min-speed", "9", "--weight-bits", "4"], 2, "'--weight-bits': 4 is not in the range 7<=x<=8"),
    (["tiny", "--local", "--max-drop", "0.1", "--min-speed", "9", "--teacher", "nobody"], 2, "'nobody' is not one of"),
    (["tiny", "--max-drop", "1", "--min-speed", "9"], 2, "may be meant in points or as a share; write 1pt for 1 percentage point"),
    (["tiny", "--max-drop", "a bit", "--min-speed", "9"], 2, "expected a share such as 0.01, or points such as 1pt"),
    (["tiny", "--max-drop", "150pt", "--min-speed", "9"], 2, "max-drop: expected a number at least 0 and at most 1, got 1.5"),
    (["never", "--max-drop", "1.5pt", "--min-speed", "9"], 1, "no such run (there: tiny"),
    (["never", "--local", "--max-drop", "0.1", "--min-speed", "9"], 1, "no such run (there: tiny"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "words"), LIGHTEN)
def test_lightening_that_cannot_be(psl, arguments, status, words):
    assert LIGHTEN
    found, out, err = psl("lighten", *arguments)
    assert (found, out) == (status, "")
    assert words in " ".join(err.replace("│", " ").split())
