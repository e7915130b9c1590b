"""A comparison's plots and its page."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny_comparison import METHODS, holdings, report, without_some

from psl_flower.patches import PatchGrid
from simulations.compare.notes import notes
from simulations.compare.report import Report


class Page(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.labels = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "svg":
            self.labels.append(values.get("aria-label"))
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_accuracy_without_some_uppers(tmp_path):
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    from simulations.compare.files import write_files

    found = without_some()
    assert "Accuracy without some Uppers" not in dict(report().headed_tables)
    head, rows = found.tables[4]
    assert head[1:] == ("0", "1")
    assert [row[0] for row in rows] == [method.name for method in METHODS[2:6]]
    assert rows[0][1:] == ("70.0 (60.0 to 70.0)", "50.0 (40.0 to 70.0)")
    assert "zeros stand for" in notes(found)
    assert found.command.endswith("--engine one-graph --absent")
    text = write_files(tmp_path, found, []).read_text("utf-8")
    assert "<h2>Accuracy without some Uppers</h2>" in text
    assert (tmp_path / "absent.png").exists()
    rows = list(csv.DictReader((tmp_path / "absent.csv").open()))
    assert (len(rows), rows[1]["absent"], float(rows[1]["accuracy_mean"])) == (2 * 2 * 4, "1", pytest.approx(0.5))


def test_files_and_a_page_that_needs_nothing_but_itself(tmp_path):
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    from simulations.compare.files import write_files

    path = write_files(tmp_path, report(), holdings())
    assert path == tmp_path / "index.html"
    text = path.read_text("utf-8")
    found = Page(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(found.ids)
    assert "script" not in found.tags
    assert "A &lt;CPU&gt;" in text
    plots = sorted(file.stem for file in tmp_path.glob("*.png"))
    assert plots == [
        "accuracy-by-bytes", "accuracy-by-epoch", "accuracy-by-time", "adaptation-0", "adaptation-1",
        "confusion-0", "confusion-1", "confusion-2", "holdings-0", "holdings-1",
    ]  # fmt: skip
    assert found.tags.count("svg") == len(plots)
    assert all(found.labels)
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in plots)
    assert found.tags.count("table") == 5
    assert {"report.json", "methods.csv", "curves.csv"} <= {file.name for file in tmp_path.iterdir()}
    # The same report makes the same page.
    write_files(tmp_path, report(), holdings())
    assert path.read_text("utf-8") == text


def test_what_was_not_compared_is_not_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    from simulations.compare.files import write_files

    whole = report()
    alone = Report(
        date=whole.date, machine=whole.machine, versions=whole.versions, settings=whole.settings,
        measurements=tuple(whole.trials_of("whole image")), summaries=whole.summaries[:1],
    )  # fmt: skip
    write_files(tmp_path, alone, [])
    assert sorted(file.stem for file in tmp_path.glob("*.png")) == [
        "accuracy-by-epoch",
        "accuracy-by-time",
        "confusion-0",
    ]


def test_parts_of_an_image():
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    from simulations.compare import pictures

    grid = PatchGrid(image_size=(4, 4), patch_size=(2, 2), stride=(2, 2))
    found = pictures._part(np.zeros((4, 4, 3)), grid, (0, 1, 1, 0), 0)
    assert (found[:2, :2] == 0).all() and (found[2:, 2:] == 0).all()
    assert (found[:2, 2:] == found[2:, :2]).all() and (found[:2, 2:] > 0.5).all()
    assert "one of 9 patches of every image, 25 %" in pictures.caption(holdings()[0])
    assert pictures.caption(holdings()[1]).endswith("5 of 9 clients are shown.")
