"""The comparison without its trainings: arguments, methods, summaries, tables, CSV, plots and the page."""

import csv
import importlib.util
import io
import json
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import GridError, RunError
from psl_flower.patches import PatchGrid
from simulations import page as benchmarks
from simulations import reports
from simulations.compare import command, study, table
from simulations.compare.federated import federation, total_by_node
from simulations.compare.methods import Choice, plan, read_grid, read_variant, usual_grids
from simulations.compare.results import Absence, Cost, Mean, Point, Report, Settings, Trial, summarise, target_accuracy
from simulations.reports import Spread
from simulations.tables import show

CHOICE = Choice(
    methods=("whole", "patch-split", "fedprox"), grids=(), alphas=(0.0, 1.0), variants=(),
    partitions=("iid", "dirichlet"), dirichlet_alpha=0.5, clients=0, local_epochs=1,
)  # fmt: skip
METHODS = plan(RunConfig(), CHOICE, (16, 16))
SHARED = {
    key: value for key, value in RunConfig.from_mapping(study.DEFAULTS).to_mapping().items() if key not in study.DECIDED
}


def trial(method, seed, *accuracies, sent=1_000_000):
    federated = method.kind in ("patch-split", "averaging")
    points = [
        Point(
            epoch=i + 1.0, accuracy=accuracy, test_loss=1.0, train_s=10.0 * (i + 1) * (seed + 1),
            bytes_up=sent * (i + 1) * federated, bytes_down=sent * (i + 1) * federated // 2,
        )
        for i, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    return Trial(
        method=method.name, seed=seed, engine="flwr", points=tuple(points), confusion=((3, 1), (0, 4)), wall_s=50.0,
        up={"0": 3 * sent, "1": sent} if federated else {}, down={"0": sent, "1": sent} if federated else {},
        peak_bytes={"node": 500_000_000, "server": 900_000_000} if federated else {"one process": 700_000_000},
    )  # fmt: skip


def report(**changes):
    trials = [trial(m, seed, 0.5, 0.7 + 0.01 * n + 0.1 * seed) for seed in (0, 1) for n, m in enumerate(METHODS)]
    cost = Cost(node_flops=2e9, server_flops=3e9, node_images=100, node_weights=150_000, weights=11_000_000)
    target = target_accuracy(trials, METHODS, None)
    values = {
        "config": SHARED, "options": {"epochs": "2", "seeds": "0,1"}, "engine": "flwr", "epochs": 2,
        "train_images": 100, "test_images": 16, "steps_per_epoch": 7, "classes": ("cat", "dog"), "target": target,
    }  # fmt: skip
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A <CPU>", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings=Settings(**(values | changes)),
        measurements=tuple(trials),
        summaries=summarise(METHODS, {m.name: cost for m in METHODS}, trials, target),
    )


def holdings():
    images = np.arange(5 * 3 * 16 * 16, dtype=np.uint32).reshape(5, 3, 16, 16).astype(np.uint8)
    grid = PatchGrid(image_size=(16, 16), patch_size=(8, 8), stride=(4, 4))
    return [study.Holding("3x3 patches", images, grid, tuple(range(9))), study.Holding("federated averaging", images)]


def test_methods_of_the_usual_choice():
    assert [method.name for method in METHODS] == [
        "whole image",
        "whole image, augmented by patches",
        "2x2 patches of 8x8",
        "2x2 patches of 8x8 + Adaptation Net",
        "3x3 patches of 8x8, stride 4x4",
        "3x3 patches of 8x8, stride 4x4 + Adaptation Net",
        "FedProx, 4 clients, IID",
        "FedProx, 4 clients, Dirichlet(0.5)",
    ]
    assert METHODS[4].config == {"patch-size": "8x8", "stride": "4x4", "alpha": 0.0}
    assert METHODS[7].own["partition"] == "dirichlet"
    assert METHODS[2].group == METHODS[3].group != METHODS[4].group


def test_variants_of_patch_split_learning():
    given = parse("--methods", "whole,patch-split", "--grids", "8x8", "--variants", "flip=true+shift=2,mixup=0.2")
    methods = plan(RunConfig(), command.read_options(given).choice, (16, 16))
    assert [method.name for method in methods[2:]] == [
        "2x2 patches of 8x8",
        "2x2 patches of 8x8 + Adaptation Net",
        "2x2 patches of 8x8, flip=true shift=2",
        "2x2 patches of 8x8, flip=true shift=2 + Adaptation Net",
        "2x2 patches of 8x8, mixup=0.2",
        "2x2 patches of 8x8, mixup=0.2 + Adaptation Net",
    ]
    assert methods[5].config == methods[3].config | {"flip": True, "shift": 2}
    assert methods[6].config["mixup"] == 0.2 and "mixup" not in methods[4].config
    assert methods[4].group == methods[5].group != methods[6].group
    assert read_variant("") == {}


def test_grids():
    assert read_grid("16x16/8x8") == ((16, 16), (8, 8))
    assert read_grid("8") == ((8, 8), (8, 8))
    assert usual_grids((32, 24)) == (((16, 12), (16, 12)), ((16, 12), (8, 6)))
    assert usual_grids((33, 33)) == (((17, 17), (17, 17)),)
    with pytest.raises(GridError, match="do not tile"):
        plan(RunConfig(), command.read_options(parse("--grids", "5x5")).choice, (16, 16))


def parse(*arguments):
    return command.make_parser().parse_args(arguments)


def test_summaries():
    summaries = report().summaries
    assert [summary.method for summary in summaries] == METHODS
    whole, split = summaries[0], summaries[2]
    assert whole.accuracy == Mean(mean=pytest.approx(0.75), low=pytest.approx(0.7), high=pytest.approx(0.8))
    assert (whole.up, whole.down) == ({}, {})
    assert split.up == {"node": 3_000_000, "all": 4_000_000}
    assert split.down == {"node": 1_000_000, "all": 2_000_000}
    assert split.train_s == Spread(median=30.0, low=20.0, high=40.0)
    # Nine tenths of what whole images augmented by patches came to; one seed of "whole image" stays below it... at 0.7.
    assert report().settings.target == pytest.approx(0.684, abs=1e-3)
    assert whole.epochs_to_target == Mean(mean=2.0, low=2.0, high=2.0)


def test_a_target_that_not_all_trials_reach():
    trials = [trial(METHODS[0], 0, 0.2, 0.4), trial(METHODS[0], 1, 0.6, 0.7)]
    cost = report().summaries[0].cost
    (found,) = summarise(METHODS, {m.name: cost for m in METHODS}, trials, 0.5)
    assert (found.reached, found.trials, found.epochs_to_target) == (1, 2, Mean(mean=1.0, low=1.0, high=1.0))
    assert target_accuracy(trials, METHODS, 0.33) == 0.33
    assert target_accuracy(trials, METHODS, None) == pytest.approx(0.9 * 0.55, abs=1e-3)


def test_tables_have_a_cell_for_every_column(capsys):
    said = table.present(report())
    for head, rows in said.tables:
        assert len(rows) == len(METHODS)
        assert {len(row) for row in rows} == {len(head)}
    accuracy, traffic, work, seen = (rows for _, rows in said.tables)
    assert accuracy[0] == ("whole image", "75.0 (70.0 to 80.0)", "2.0", "30 (20 to 40)", "50")
    assert traffic[0][1:] == ("-", "-", "-", "-")
    assert traffic[2][1:] == ("3.00", "1.00", "4.00", "2.00")
    assert work[2][1:] == ("200", "300", "500", "900", "150")
    assert work[0][3:5] == ("700", "-")
    assert "no labels" in seen[2][1] and "whole images and labels" in seen[6][1]
    show(said)
    assert "Uneven:" in " ".join(capsys.readouterr().out.split())


def test_engines_without_flower_say_so():
    assert "without Flower and Ray" in table.notes(report(engine="in-process"))
    assert "no bytes are counted" in table.notes(report(engine="one-graph"))


def test_csv():
    rows = list(csv.DictReader(io.StringIO(table.to_csv(report()))))
    assert [row["method"] for row in rows] == [method.name for method in METHODS]
    assert (rows[2]["up_bytes_all"], rows[0]["up_bytes_all"]) == ("4000000", "")
    curves = list(csv.DictReader(io.StringIO(table.curves_csv(report()))))
    assert len(curves) == 2 * 2 * len(METHODS)
    assert float(curves[1]["accuracy"]) == pytest.approx(0.7)


def test_the_command_measures_the_same_again():
    words = [
        "--dataset",
        "../data/x",
        "--epochs",
        "4",
        "--alphas",
        "0,0.5",
        "--grids",
        "8x8/4x4",
        "--seeds",
        "1,2",
        "--engine",
        "one-graph",
        "--variants",
        "flip=false,cutout=4+lr=0.1",
        "--absent",
        "--max-train",
        "50",
        "--target",
        "0.5",
        "flip=true",
    ]
    given = parse(*words)
    options, config = command.read_options(given), command.read_config(given)
    asked = report(
        options=options.told, config={k: v for k, v in config.to_mapping().items() if k not in study.DECIDED}
    )
    line = table.command(asked)
    again = parse(*line.split()[3:])
    assert command.read_options(again) == options
    assert command.read_config(again) == config
    assert (config.max_train, config.flip, options.seeds) == (50, True, (1, 2))


def test_a_section_of_the_page_of_benchmarks():
    text = benchmarks.render({"compare-digits.json": report()})
    assert "## compare-digits\n\ndigits, resnet18, 100 training and 16 test images, 2 epochs, 2 seeds; A <CPU>" in text
    assert "| 2x2 patches of 8x8 | 3.00 | 1.00 | 4.00 | 2.00 |" in text
    assert "    python -m simulations.compare --epochs 2 --seeds 0,1\n" in text


def test_a_report_survives_its_file(tmp_path):
    path = tmp_path / "report.json"
    reports.save(path, report())
    assert reports.load(path, Report) == report()
    told = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**told, "version": 99}), "utf-8")
    with pytest.raises(RunError, match="expected version 1"):
        reports.load(path, Report)


def without_some():
    """Return the report of a study that measured accuracy without some Uppers."""
    full = report(engine="one-graph", options={"epochs": "2", "engine": "one-graph", "absent": ""})
    points = tuple(
        Absence(absent=n, accuracy=Mean(mean=0.7 - 0.2 * n, low=0.6 - 0.2 * n, high=0.7), tried=2, possible=2)
        for n in range(2)
    )
    names = {method.name for method in METHODS if method.kind == "patch-split"}
    measured = [msgspec.structs.replace(t, absent=points * (t.method in names)) for t in full.measurements]
    return msgspec.structs.replace(full, measurements=tuple(measured))


def test_accuracy_without_some_uppers(tmp_path):
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    from simulations.compare.files import write_files

    found = without_some()
    assert table.present(report()).tables[4:] == ()
    head, rows = table.present(found).tables[4]
    assert head[1:] == ("0", "1")
    assert [row[0] for row in rows] == [method.name for method in METHODS[2:6]]
    assert rows[0][1:] == ("70.0 (60.0 to 70.0)", "50.0 (40.0 to 70.0)")
    assert "zeros stand for" in table.notes(found)
    assert table.command(found).endswith("--engine one-graph --absent")
    text = write_files(tmp_path, found, []).read_text("utf-8")
    assert "<h2>Accuracy without some Uppers</h2>" in text
    assert (tmp_path / "absent.png").exists()
    rows = list(csv.DictReader((tmp_path / "absent.csv").open()))
    assert (len(rows), rows[1]["absent"], float(rows[1]["accuracy_mean"])) == (2 * 2 * 4, "1", pytest.approx(0.5))


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
    assert found.tags.count("table") == 4
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


def test_bytes_of_a_run_that_was_continued():
    assert total_by_node([{"0": 5, "1": 2}, {"0": 9, "1": 4}, {"0": 3, "1": 1}]) == {"0": 12, "1": 5}


def test_confusion():
    assert study.confusion([0, 0, 1, 2], [0, 1, 1, 0], 3) == ((1, 1, 0), (0, 1, 0), (1, 0, 0))


def test_a_trial_is_another_one_if_anything_that_matters_is():
    config = RunConfig()
    name = study.trial_name(METHODS[6], 0, "flwr", config)
    assert name.startswith("FedProx-4-clients-IID-seed0-")
    assert name == study.trial_name(METHODS[6], 0, "flwr", config.replace(workspace="/elsewhere", upper_threads=3))
    others = [
        study.trial_name(METHODS[6], 0, "flwr", config.replace(lr=0.1)),
        study.trial_name(METHODS[6], 0, "in-process", config),
        study.trial_name(METHODS[6], 0, "flwr", config, absent=True),
        study.trial_name(METHODS[7], 0, "flwr", config),
    ]
    assert len({name, *others}) == 5


def test_a_damaged_trial_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"method": 3}')
    with pytest.raises(RunError, match=r"x\.json.*delete it"):
        study.read_trial(path)


def test_clients_take_turns_on_the_cores():
    found = federation({"clients": 10})
    assert found["num-supernodes"] == 10
    assert found["init-args-num-cpus"] <= 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "at least 1"),
        (["--methods", "magic"], "expected some of whole"),
        (["--methods", ""], "one value or more"),
        (["--seeds", "1,1"], "none of them twice"),
        (["--seeds", "-1"], "whole number of 0 or more"),
        (["--alphas", "x"], "number of 0 or more"),
        (["--grids", "16x16/"], "patch/stride"),
        (["--engine", "ray"], "invalid choice"),
        (["--variants", "seed=1"], "'seed' is none of"),
        (["--variants", "flip=maybe"], "flip"),
        (["--absent"], "goes with --engine one-graph"),
        (["--epochs", "3", "--local-epochs", "2"], "no whole number of rounds"),
        (["patch-size=8x8"], "see --grids"),
        (["rounds=2"], "see --epochs"),
        (["colour=red"], "unknown setting colour"),
    ],
)
def test_usage_errors_end_with_2(arguments, message, capsys, tmp_path):
    assert command.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_said_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("flwr", "flwr_datasets") else name)
    assert command.main(["--out", str(tmp_path / "out")]) == 1
    assert "error: flwr_datasets, flwr: not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_ends_with_1(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    assert command.main(["--out", str(tmp_path / "out"), "--dataset", str(tmp_path / "absent")]) == 1
    (tmp_path / "file").touch()
    assert command.main(["--out", str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.count("error: ") == 2
