"""Throughput between hosts without the hosts: statistics, tables, the section of the page, arguments."""

import shlex

import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError
from simulations import page, reports
from simulations.reports import Spread
from simulations.separate_hosts.__main__ import BENCHMARK, DECIDED
from simulations.separate_hosts.results import Measurement, Report, Settings, summarise
from simulations.settings import DEFAULTS, without
from simulations.throughput import results as throughput
from simulations.throughput.__main__ import BENCHMARK as THROUGHPUT
from tests.settings import known_settings

main, make_parser = BENCHMARK.main, BENCHMARK.make_parser


def measurement(repetition, delay_ms, step_s, alone_s, wire_s):
    return Measurement(
        repetition=repetition,
        delay_ms=delay_ms,
        round_trip_s=2e-3 * delay_ms + 0.0001,
        batch_size=8,
        step_s=(9.0, step_s, step_s),
        before_s=(alone_s[0],) * 3,
        after_s=(alone_s[1],) * 3,
        parts_s={"upper": 0.5, "lower": 1.0, "wire": wire_s},
        bytes_up=32_000,
        bytes_down=40_000,
        steps=4,
    )


def trials():
    return (
        measurement(1, 0.0, 2.0, (1.0, 2.0), 0.25), measurement(1, 50.0, 4.0, (2.0, 2.0), 1.0),
        measurement(2, 0.0, 4.0, (2.0, 4.0), 0.5), measurement(2, 50.0, 5.0, (4.0, 4.0), 1.75),
    )  # fmt: skip


def report():
    settings = Settings(
        config=without(RunConfig.from_mapping(DEFAULTS).replace(dataset="elsewhere"), DECIDED),
        delays_ms=(0.0, 50.0), steps=3, warmup=1, repetitions=2, threads=2, upper_threads=1, nodes=4, netem=False,
        congestion_control="cubic",
    )  # fmt: skip
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings=settings,
        measurements=trials(),
        summaries=summarise(settings.delays_ms, trials()),
    )


def test_the_opponent_is_the_mean_of_before_and_after():
    trial = trials()[0]
    assert trial.images_per_s == 4.0
    assert trial.one_process == (8.0 + 4.0) / 2


def test_summary_compares_within_a_repetition():
    plain, delayed = summarise((0.0, 50.0), trials())
    assert (plain.delay_ms, delayed.delay_ms) == (0.0, 50.0)
    assert plain.ratio == Spread(median=4 / 6, low=4 / 6, high=2 / 3)
    assert delayed.ratio == Spread.of([2.0 / 4.0, 1.6 / 2.0])
    assert delayed.added_s == Spread.of([0.75, 1.25])
    assert plain.added_s == Spread.of([0.0])
    assert delayed.step_s == Spread.of([4.0, 5.0])
    # 4 steps of 8 images.
    assert (plain.bytes_up_per_image, plain.bytes_down_per_image) == (1000.0, 1250.0)


def test_without_an_undelayed_trial_nothing_is_added():
    (delayed,) = summarise((50.0,), [trial for trial in trials() if trial.delay_ms])
    assert delayed.added_s is None


def test_its_result_file_has_a_section_on_the_page(tmp_path, capsys):
    path, written = tmp_path / "separate-hosts.json", report()
    reports.save(path, written)
    assert reports.load(path, Report) == written
    assert reports.load(path, throughput.Report) is None
    assert THROUGHPUT.main(["--page", str(path)]) == 0
    text = capsys.readouterr().out
    assert text == page.render({"separate-hosts.json": written})
    for expected in (
        "## separate-hosts\n\n4 nodes and the server in network namespaces with TLS",
        "| 50 | 1.8 (1.6 to 2.0) | 3.0 (2.0 to 4.0) | 0.65 (0.50 to 0.80) | 4.50 (4.00 to 5.00) |",
        "| 0 | 0.1 | 0.38 (0.25 to 0.50) | - | 1.0 | 1.2 |",
        "| 50 | 100.1 | 1.38 (1.00 to 1.75) | 1.00 (0.75 to 1.25) | 1.0 | 1.2 |",
        "one-way delay on each node's link",
        f"    {written.command}\n",
    ):
        assert expected in text


def test_the_command_that_measures_it_again():
    words = shlex.split(report().command)
    assert words[:3] == ["python", "-m", "simulations.separate_hosts"]
    given = make_parser().parse_args(words[3:])
    assert (given.delays_ms, given.steps, given.warmup, given.repetitions, given.threads) == ((0.0, 50.0), 3, 1, 2, 2)
    assert BENCHMARK.read(given)[0].data.dataset == "elsewhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--delays", "x"], "number of 0 or more, got 'x'"),
        (["--delays", "10,10"], "none of them twice"),
        (["--delays", "-1"], "number of 0 or more"),
        (["--delays", "inf"], "number of 0 or more"),
        (["--warmup", "0"], "at least 1"),
        (["uppers=3"], "the benchmark decides it"),
        (["transport=flower"], "the benchmark decides it"),
    ],
)
def test_usage_errors_end_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_the_benchmark_decides_are_settings():
    assert DECIDED.keys() <= known_settings().keys()
    with pytest.raises(ConfigError, match="see --steps"):
        BENCHMARK.read(make_parser().parse_args(["rounds=2"]))
