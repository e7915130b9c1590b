"""Figures in README and docs are those of the committed result files, and tables can be quoted in part."""

import re

import pytest
from PIL import Image
from tiny_comparison import report

from psl_flower.errors import RunError
from simulations import quoting
from tests.paths import ROOT

PAGES = ("README.md", "docs/accuracy.md", "docs/accuracy-studies.md", "docs/privacy.md")
TEXT = "Before.\n<!-- figures: x table 1 columns 1,2 -->\nold\n<!-- end of figures -->\nAfter.\n"


@pytest.mark.parametrize("page", PAGES)
def test_committed_figures_are_those_of_the_result_files(page):
    text = (ROOT / page).read_text("utf-8")
    assert "<!-- figures: " in text
    assert quoting.fill(text, quoting.load_result) == text


@pytest.mark.parametrize("page", PAGES)
def test_a_figure_typed_by_hand_is_found(page):
    text = (ROOT / page).read_text("utf-8")
    typed, changes = re.subn(r"\| (\d+)\.(\d) \|", r"| \1.\2\2 |", text, count=1)
    assert changes == 1
    assert quoting.fill(typed, quoting.load_result) == text


@pytest.mark.parametrize("page", PAGES)
def test_committed_plots_are_those_of_the_result_files(page):
    plots = quoting.plots((ROOT / page).read_text("utf-8"))
    assert len(plots) > 5 or page != "docs/accuracy-studies.md"
    for path, name, _ in plots:
        with Image.open((ROOT / page).parent / path) as image:
            assert image.text["Source"] == quoting.source_of(name), f"{path}: make it anew with simulations.quoting"


def test_a_plot_of_nothing_is_refused(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("![x](figures/by-hand.png)", "utf-8")
    assert quoting.main([str(page)]) == 1
    page.write_text("![x](figures/compare-cifar10-absent.png)", "utf-8")
    assert quoting.main([str(page)]) == 1
    page.write_text("![x](figures/chaos-absent.png)", "utf-8")
    assert quoting.main([str(page)]) == 1
    errors = capsys.readouterr().err
    assert "is no plot of a result file" in errors and errors.count("has no plot absent") == 2


def test_a_part_of_a_table():
    found = quoting.fill(TEXT, {"x": report()}.__getitem__)
    assert found.startswith(
        "Before.\n<!-- figures: x table 1 columns 1,2 -->\n| method | accuracy, % |\n| --- | ---: |\n"
    )
    assert "| whole image | 75.0 (70.0 to 80.0) |\n" in found
    assert found.endswith("\n\nx: digits, resnet18, 100 training and 16 test images, 2 epochs, 2 seeds; A <CPU>, 2 cores, "
                          "8 GiB.\n<!-- end of figures -->\nAfter.\n")  # fmt: skip
    assert quoting.fill(found, {"x": report()}.__getitem__) == found


@pytest.mark.parametrize("wrong", ["table 9", "table 1 columns 12"])
def test_what_is_not_there_cannot_be_quoted(wrong):
    with pytest.raises(RunError, match=f"{wrong} -->: there is no such table or column"):
        quoting.fill(TEXT.replace("table 1 columns 1,2", wrong), {"x": report()}.__getitem__)


def test_the_command(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(TEXT.replace("figures: x", "figures: chaos"), "utf-8")
    assert quoting.main([str(page)]) == 0
    assert "| killed | times |" in page.read_text("utf-8")
    page.write_text(TEXT, "utf-8")
    assert quoting.main([str(page)]) == 1
    assert quoting.main([str(tmp_path / "absent.md")]) == 1
    assert capsys.readouterr().err.count("error: ") == 2
