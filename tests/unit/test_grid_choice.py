"""The benchmark of `grid="auto"`: what is chosen, for whom, and how it is told."""

import json

from simulations import grid_choice, page, reports
from simulations.grid_choice import Report


def test_plain_digits_and_busy_photographs(tmp_path, capsys):
    out = tmp_path / "grid.json"
    assert grid_choice.main(["--out", str(out)]) == 0
    assert "auto chose 2x2 patches of 8x8" in " ".join(capsys.readouterr().out.split())
    report = reports.load(out, Report)
    digits, flower, temple, views = report.measurements
    assert (digits.rows, digits.cols, digits.patch_size) == (2, 2, (8, 8))
    assert digits.turns < flower.turns < temple.turns
    assert (temple.rows, temple.cols, temple.image_size) == (7, 7, (416, 640))
    assert (views.num_images, views.image_size) == (18, (208, 320))
    assert flower.turns < views.turns < temple.turns
    text = page.render(page.load_all([str(out)]))
    assert "| digits | 16x16 | 256 | 1.4 | 2x2 | 8x8 | - |" in text
    assert "    python -m simulations.grid_choice --dataset digits\n" in text


def test_what_cannot_be_read_ends_with_1(tmp_path, capsys):
    assert grid_choice.main(["--dataset", str(tmp_path / "absent"), "--json"]) == 1
    assert "error: " in capsys.readouterr().err
    assert grid_choice.main(["--json", "--dataset", "digits"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"] == ["digits"]
