"""The benchmark of patches that are matched by their borders."""

import numpy as np
import pytest

from simulations import reports, seams
from simulations.seams import Report


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("seams") / "seams.json"
    assert seams.main(["--images", "60", "--patch-sizes", "half,4x8", "--out", str(out)]) == 0
    return reports.load(out, Report)


def test_every_pair_of_neighbours_is_measured(measured):
    half, fine = measured.measurements
    assert (half.patch_size, half.rows, half.cols, len(half.seams)) == ((8, 8), 2, 2, 4)
    assert (fine.patch_size, fine.rows, fine.cols, len(fine.seams)) == ((4, 8), 4, 2, 4 + 6)
    assert all(seam.records == 60 and 0 <= seam.matched.mean <= 1 for seam in half.seams)
    assert np.mean([seam.matched.mean for seam in half.seams]) > 3 / 60


def test_the_report(measured):
    (_, cuts), (_, pairs) = measured.tables
    assert [row[:3] for row in cuts] == [("2x2", "8x8", "60"), ("4x2", "4x8", "60")]
    assert len(pairs) == 14 and pairs[0][:3] == ("2x2", "0 and 1", "right")
    assert "60 images" in measured.title
    assert "--patch-sizes half,4x8" in measured.command


def test_a_margin_gives_neighbours_away(measured, tmp_path):
    """Both stores hold the same pixels: whoever compares them finds nearly every neighbour."""
    out = tmp_path / "seams.json"
    assert seams.main(["--images", "60", "--margin", "2", "--out", str(out)]) == 0
    wide = reports.load(out, Report)
    shares = [
        np.mean([seam.matched.mean for seam in cut.seams]) for cut in (*wide.measurements, *measured.measurements)
    ]
    assert shares[0] > 0.9 > shares[1]
    assert "with a margin of 2 pixels" in wide.title and "margin" not in measured.title
    assert "--margin 2" in wide.command and "--margin" not in measured.command
    assert "pixels that both stores hold" in wide.notes


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--patch-sizes", "x"], 2), (["--patch-sizes", "5x5"], 1), (["--images", "1"], 2)]
)
def test_what_cannot_be_is_refused(arguments, status, capsys):
    assert seams.main(arguments) == status
    err = capsys.readouterr().err
    assert "Traceback" not in err and err
