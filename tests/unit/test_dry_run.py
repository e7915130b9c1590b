"""`psl train --dry-run` and --config: what is said before anything is made, held to what is made then."""

import json
from pathlib import Path

import pytest
import tomli_w
from PIL import ExifTags, Image
from tiny_pictures import colour, encode, image_folder, make_pictures
from tiny_run import make_run

from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.runs.history import Extension, note_extension
from psl_flower.runs.housekeeping import size_of
from psl_flower.stores import planned as planning
from psl_flower.stores.planned import plan_stores
from psl_flower.stores.prepare import prepare_stores

DIGITS = ["dataset=digits", "max-train=40", "max-test=20", "uppers=2"]


@pytest.fixture
def psl(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path / "workspace"))

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def test_a_dry_run_writes_nothing_and_says_what_would_be_made(psl, tmp_path):
    status, out, err = psl(
        "train", "--dry-run", "--json", *DIGITS, "batch-size=8", "rounds=2", "wire-gradients=bfloat16"
    )
    report = json.loads(out)
    assert (status, err) == (0, "") and not (tmp_path / "workspace").exists()
    config = RunConfig.of(max_train=40, max_test=20, uppers=2, workspace=str(tmp_path / "workspace"))
    stores = prepare_stores(config)
    network = Blueprint(config, stores.description).network()
    assert report["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert (report["train_images"], report["test_images"], report["grid"]) == (40, 20, [2, 2])
    assert (report["steps_per_round"], report["steps"]) == (5, 10)
    assert (report["bytes_up_per_image"], report["bytes_down_per_image"]) == (4 * 64 * 8 * 8 * 4, 4 * 64 * 8 * 8 * 2)
    coded = psl("train", "--dry-run", "--json", *DIGITS, "batch-size=8", "protection=code", "code-size=6")[1]
    assert json.loads(coded)["bytes_up_per_image"] == 4 * 6 / 8
    in_all = dict.fromkeys(("bytes_up_in_all", "bytes_down_in_all"), 0)
    # 80 images of 2 rounds, and 20 test images after each; one look: 40 and 20, of 4 patches of 6 signs.
    assert {key: report[key] for key in in_all} == {
        "bytes_up_in_all": (80 + 40) * 4 * 64 * 8 * 8 * 4,
        "bytes_down_in_all": 80 * 4 * 64 * 8 * 8 * 2,
    }
    frozen = ("protection=code", "code-size=6", "batch-size=8", "rounds=3", "freeze-uppers-after=1", "looks=1")
    few = json.loads(psl("train", "--dry-run", "--json", *DIGITS, *frozen)[1])
    assert {key: few[key] for key in in_all} == {
        "bytes_up_in_all": (40 + 20 + 40 + 20) * 3,
        "bytes_down_in_all": 40 * 4 * 6 * 4,
    }
    on_disk = sum(size_of(stores.store_path(m)) for m in range(2))
    assert report["stores"] == str(stores.folder)
    assert report["disk_stores"] == pytest.approx(on_disk, rel=0.5) and report["disk_stores"] < on_disk
    again = json.loads(psl("train", "--dry-run", "--json", *DIGITS)[1])
    assert again["stores_exist"] is True and again["disk_stores"] == 0


def test_a_plan_has_all_that_decides_the_network(tmp_path):
    config = RunConfig.of(
        max_train=40, max_test=20, patch_size=(8, 8), stride=(4, 4), uppers=3, workspace=str(tmp_path)
    )
    planned = plan_stores(config)
    assert not any(tmp_path.iterdir())
    made = prepare_stores(config)
    same = ("image_size", "channels", "patch_size", "stride", "fit", "assignment", "class_names", "splits")
    assert planned.folder == made.folder
    for name in same:
        assert getattr(planned.description, name) == getattr(made.description, name)


def test_a_dry_run_refuses_what_the_run_would_refuse(psl, tmp_path):
    for settings, words in (
        (["dataset=/nowhere/at/all"], "nowhere"),
        (["patch-size=7x7"], "patch"),
        (["max-train=1"], "2 or more samples"),
        (["device=cuda:99"], "cuda:99 was asked for"),
        ([*DIGITS, "rounds=3", "freeze-uppers-after=3"], "the run has 3 rounds, so no round is left after 3"),
        (["resume=never"], "no such run"),
    ):
        status, out, err = psl("train", "--dry-run", *settings)
        assert (status, out) == (1, "") and words in err and err.count("\n") == 1
    assert psl("train", "--dry-run", "predict=tiny")[0] == 2
    assert not (tmp_path / "workspace").exists()


def test_people_read_of_images_grid_wire_memory_and_disk(psl):
    status, out, _ = psl("train", "--dry-run", *DIGITS)
    assert status == 0
    assert "images      40 to train, 20 to test, 16x16, 1 channel, 10 classes" in out
    assert "2x2 patches of 8x8, for 2 Uppers on 2 simulated nodes" in out
    wide = ("--json", *DIGITS, "margin=2", "shift=2")
    report, plain = (json.loads(psl("train", "--dry-run", *more)[1]) for more in (wide, ("--json", *DIGITS)))
    assert (report["margin"], plain["margin"]) == (2, 0)
    # Of 60 images: 4 patches of 12x12 in place of 8x8 in the stores, and the same on the wire.
    assert report["disk_stores"] - plain["disk_stores"] == 60 * 4 * (12 * 12 - 8 * 8)
    assert report["bytes_up_per_image"] == plain["bytes_up_per_image"]
    assert "2x2 patches of 8x8, margin 2 pixels, for 2 Uppers" in psl("train", "--dry-run", *wide[1:])[1]
    for word in ("network", "training", "wire", "memory", "disk", "run "):
        assert any(line.startswith(word) for line in out.splitlines())


def test_settings_in_a_file_and_on_the_command_line(psl, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("uppers = 2\n[data]\nmax-train = 40\nmax-test = 20\n[training]\nrounds = 5\nbatch-size = 8\n")
    report = json.loads(psl("train", "--dry-run", "--json", "--config", file, "rounds=1")[1])
    assert (report["train_images"], report["rounds"], report["steps"], report["uppers"]) == (40, 1, 5, 2)
    for text, words in (
        ("rounds = ", "not a TOML file"),
        ("rouns = 3\n", "did you mean rounds?"),
        ("rounds = 3\n[training]\nrounds = 4\n", "rounds is given twice"),
        ('rounds = "3"\n', "rounds: expected a whole number, got '3'"),
    ):
        file.write_text(text)
        status, out, err = psl("train", "--dry-run", "--config", file)
        assert (status, out) == (2, "") and words in " ".join(err.split())
    assert psl("train", "--config", tmp_path / "none.toml")[0] == 1
    assert psl("train", "--config", file, "resume=a")[0] == 2


def test_a_run_is_repeated_by_its_own_settings(psl, tmp_path):
    run, _ = make_run(tmp_path / "workspace", "tiny", lr=0.125, run_name="tiny")
    config = run.path / "config.toml"
    status, out, err = psl("train", "--dry-run", "--json", "--config", config)
    report = json.loads(out)
    assert status == 0 and "settings of run tiny" in err
    assert (report["train_images"], report["uppers"]) == (40, 2) and report["run"] != "tiny"
    note_extension(run, Extension(step=3, before=1, rounds=3))
    assert "was extended from 1 to 3 rounds after step 3" in psl("train", "--dry-run", "--config", config)[2]
    config.write_text(tomli_w.dumps({**RunConfig().to_mapping(), "instead": {"restore": "asked.psl"}}))
    assert "was made with restore" in psl("train", "--config", config)[2]
    assert Path(run.path / "status.json").exists()


def test_images_of_other_sizes_are_noticed(psl, tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    assert psl("train", "--dry-run", f"dataset={folder}", "batch-size=4")[0] == 0
    # Larger than the first one, by its header; the pixels themselves are damaged, and not looked at.
    (folder / "train" / "b" / "3.png").write_bytes(encode(colour(0, (12, 9)))[:60])
    status, out, err = psl("train", "--dry-run", f"dataset={folder}", "batch-size=4")
    assert (status, out) == (1, "")
    assert "is 12x9 (height x width), expected 8x8 like image train:0" in err and "image-size" in err
    assert psl("train", "--dry-run", f"dataset={folder}", "batch-size=4", "image-size=8x8")[0] == 0


def test_images_are_turned_upright_before_sizes_are_compared(psl, tmp_path):
    folder = tmp_path / "pictures"
    image_folder(folder, {"a": 4, "b": 4}, size=(8, 6))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        size = (8, 6) if orientation < 5 else (6, 8)
        (folder / "a" / f"turned-{orientation}.jpg").write_bytes(encode(colour(9, size), kind="JPEG", exif=exif))
    assert psl("train", "--dry-run", f"dataset={folder}", "batch-size=4")[0] == 0


def test_a_dry_run_says_how_many_sizes_it_has_read(psl, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_SIZES_READ", {"train": 3, "test": 2})
    folder = make_pictures(tmp_path / "pictures")
    out = psl("train", "--dry-run", f"dataset={folder}", "batch-size=4")[1]
    assert "the sizes of 5 of 12 images were read, and all are 8x8; training ends at one of another size" in out
    assert "sizes of" not in psl("train", "--dry-run", f"dataset={folder}", "batch-size=4", "image-size=8x8")[1]
