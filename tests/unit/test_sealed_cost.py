"""The benchmark of sealed stores without its timings: statistics, tables, the page's section, arguments."""

import json

import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import RunError
from simulations import page, reports
from simulations.reports import Spread
from simulations.sealed_cost.__main__ import BENCHMARK, DECIDED
from simulations.sealed_cost.results import Ingest, Reading, Report, Restoring, Settings, Trial, slow, summarise
from simulations.sealed_cost.work import IngestJob, ask
from simulations.settings import DEFAULTS
from simulations.tables import show
from simulations.throughput import results as throughput
from tests.settings import known_settings

main, make_parser = BENCHMARK.main, BENCHMARK.make_parser


def settings(**config):
    values = RunConfig.from_mapping({**DEFAULTS, **config}).to_mapping()
    return Settings(
        config={key: value for key, value in values.items() if key not in DECIDED},
        uppers=4, images=100, batches=3, steps=2, warmup=1, restored=30, repetitions=2, threads=2,
    )  # fmt: skip


def trial(slower=1.0, **ingest):
    """Return a trial on a machine that is so many times slower than the other one."""
    values = {"before_bytes": 200_000_000, "own_before_bytes": 100_000_000}
    return Trial(
        reading=Reading(
            sealed_s=(0.003 * slower, 0.001 * slower, 0.002 * slower),
            plain_s=(0.0005 * slower, 0.0001 * slower, 0.0009 * slower),
            step_s=(9.0, 0.5 * slower, 0.3 * slower),
            opening_s=0.05 * slower,
            record_bytes=768,
        ),
        ingests=(
            Ingest(images=100, seconds=1.0, peak_bytes=250_000_000, own_peak_bytes=120_000_000, **values),
            Ingest(images=400, seconds=2.0 * slower, peak_bytes=260_000_000, own_peak_bytes=121_000_000, **values),
        ),
        restoring=Restoring(images=30, seconds=0.5 * slower),
    )


def report(**config):
    trials = (trial(), trial(slower=2.0))
    chosen = settings(**config)
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings=chosen,
        measurements=trials,
        summary=summarise(chosen, trials),
    )


def test_shares_are_taken_within_a_repetition():
    found = report().summary
    assert found.sealed_s == Spread(median=0.003, low=0.002, high=0.004)
    assert found.plain_s == Spread(median=0.00075, low=0.0005, high=0.001)
    # Four Uppers' 2 ms of a step of 400 ms, whatever the machine's speed; the warm-up's 9 s do not count.
    assert found.step_s == Spread(median=pytest.approx(0.6), low=0.4, high=0.8)
    assert found.share == Spread(median=pytest.approx(0.02), low=pytest.approx(0.02), high=pytest.approx(0.02))
    assert found.extra.median == pytest.approx(4 * 0.0015 / 0.4)
    assert (found.sealed_slow_s, found.plain_slow_s) == (0.006, 0.0018)
    assert found.ingest_per_min == Spread(median=9_000.0, low=6_000.0, high=12_000.0)
    assert found.restore_per_min == Spread(median=2_700.0, low=1_800.0, high=3_600.0)
    assert found.memory[100].added_bytes == Spread(median=5e7, low=5e7, high=5e7)
    assert found.memory[400].own_added_bytes.high == 21_000_000


def test_the_slow_end():
    assert slow(list(range(1, 101))) == 95
    assert slow([3.0, 1.0, 2.0]) == 3.0
    assert slow([1.0]) == 1.0


def test_the_page_has_a_section_of_its_own():
    text = page.render({"sealed-cost.json": report()})
    assert "There is no result file" not in text
    assert "## sealed-cost\n\ndigits, 4 stores, 768 bytes of patches a record, batch 128, resnet18; A CPU" in text
    for row in (
        "| one Upper reads 128 images, sealed | 3.00 (2.00 to 4.00) | 6.00 | - |",
        "| all 4 Uppers, one after the other, sealed | - | - | 2.00 % |",
        "| training step in one process | 600 (400 to 800) | - | - |",
        "| ingest: decode, cut, seal, sign | 9,000 (6,000 to 12,000) |",
        "| 400 | 260 | 60 | 121 | 21 |",
    ):
        assert row in text
    for head, rows in report().tables:
        assert rows
        assert {len(row) for row in rows} == {len(head)}


def test_the_report_on_a_terminal(capsys):
    show(report())
    shown = capsys.readouterr().out
    for expected in ("batch 128, resnet18", "2.00 %", "2 repetitions", "images a minute"):
        assert expected in " ".join(shown.replace("\n", " ").split())


def test_the_page_names_the_command_that_measures_again():
    asked = report(**{"dataset": "../data/cifar10", "patch-size": "8x8", "autocast": True})
    line = asked.command
    assert f"    {line}\n" in page.render({"sealed-cost.json": asked})
    given = make_parser().parse_args(line.split()[3:])
    told = BENCHMARK.read(given)[0].to_mapping()
    assert {key: told[key] for key in asked.settings.config} == asked.settings.config
    assert {name: getattr(given, name) for name in ("images", "batches", "steps", "warmup", "restored")} == {
        "images": 100, "batches": 3, "steps": 2, "warmup": 1, "restored": 30,
    }  # fmt: skip
    assert (given.repetitions, given.threads) == (2, 2)


def test_a_report_survives_its_file(tmp_path):
    path, written = tmp_path / "sealed-cost.json", report()
    reports.save(path, written)
    assert reports.load(path, Report) == written
    assert reports.load(path, throughput.Report) is None
    told = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**told, "version": 99}), "utf-8")
    with pytest.raises(RunError, match="expected version 1"):
        reports.load(path, Report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "at least 1"),
        (["colour=red"], "unknown setting colour"),
        (["max-train=5"], "see --images"),
        (["stores=plain"], "the benchmark decides it"),
        (["device=cuda"], "the benchmark decides it"),
        (["--dataset", "digits", "dataset=digits"], "given twice"),
    ],
)
def test_usage_errors_end_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_written_or_read_ends_with_1(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "absent" / "x.json")]) == 1
    assert main(["--dataset", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_what_the_benchmark_decides_are_settings():
    assert set(DECIDED) <= known_settings().keys()


def test_a_trial_that_fails_says_why(tmp_path):
    config = RunConfig.of(dataset=str(tmp_path / "absent")).to_mapping()
    with pytest.raises(RunError, match=r"the measurement failed: .*absent.*no such folder"):
        ask(IngestJob(config=config, folder=str(tmp_path)), Ingest)


@pytest.mark.slow
def test_all_of_it_on_a_few_digits(tmp_path, capsys):
    out = tmp_path / "sealed-cost.json"
    few = [
        "--images",
        "40",
        "--batches",
        "4",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--restored",
        "20",
        "--repetitions",
        "1",
    ]
    assert main([*few, "--threads", "1", "--out", str(out), "batch-size=8"]) == 0
    found = reports.load(out, Report)
    assert found is not None
    (measured,) = found.measurements
    assert [i.images for i in measured.ingests] == [42, 162]
    assert (len(measured.reading.sealed_s), len(measured.reading.step_s)) == (4, 3)
    assert measured.reading.record_bytes == 64
    assert measured.restoring.images == 20
    assert all(0 < i.own_before_bytes <= i.own_peak_bytes < i.peak_bytes for i in measured.ingests)
    assert "all 4 Uppers" in capsys.readouterr().out
