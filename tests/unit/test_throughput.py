"""The throughput benchmark without its timings: arguments, statistics, memory, tables, and the page it makes."""

import os
from pathlib import Path

import pytest

from psl_flower.config import RunConfig
from psl_flower.engine.local import LocalExchange
from psl_flower.errors import ConfigError, RunError
from simulations import page, reports
from simulations.machine import peak
from simulations.memory import MemoryWatch, role_of
from simulations.reports import Spread
from simulations.settings import DEFAULTS
from simulations.tables import show
from simulations.throughput.__main__ import BENCHMARK, DECIDED
from simulations.throughput.federated import evaluation_bytes, phases
from simulations.throughput.results import Measurement, Process, Report, Settings, rate, summarise, timed
from tests.engines import Federation
from tests.paths import ROOT
from tests.settings import known_settings

DOCS = ROOT / "docs"
main, make_parser = BENCHMARK.main, BENCHMARK.make_parser


def read_config(given):
    return BENCHMARK.read(given)[0]


def settings(**changes):
    values = {
        "config": RunConfig.from_mapping(DEFAULTS).to_mapping(),
        "transports": ("stream", "flower"),
        "steps": 2,
        "warmup": 1,
        "turns": 1,
        "repetitions": 2,
        "threads": 2,
        "upper_threads": 1,
        "nodes": 4,
        "round_at_cut": False,
    }
    values["config"] = {key: value for key, value in values["config"].items() if key not in DECIDED}
    values["config"].update(changes.pop("config", {}))
    return Settings(**(values | changes))


def measurement(repetition, mode, images_per_s):
    federated = mode != "one-process"
    return Measurement(
        repetition=repetition,
        mode=mode,
        images_per_s=images_per_s,
        # Warm-up, two that are timed, one that a stop cut.
        step_s=(9.0, 8 / images_per_s, 8 / images_per_s, 70.0),
        cut=(3,),
        batch_sizes=(8, 8, 8, 8),
        parts_s={"upper": 0.3, "lower": 0.5, "wire": 0.2} if federated else {},
        bytes_up=32_000 if federated else 0,
        bytes_down=35_200 if federated else 0,
        processes=(
            (
                Process(role="Lower", peak_bytes=3_000_000 * repetition, pss_bytes=2_000_000),
                Process(role="Upper", peak_bytes=1_000_000),
                Process(role="Upper", peak_bytes=1_500_000),
            )
            if federated
            else (Process(role="one process", peak_bytes=4_000_000, pss_bytes=3_000_000),)
        ),
        startup_s={"SuperLink": 2.0, "nodes": 3.0 + repetition} if federated else {"imports": 1.0},
        loss=2.5,
    )


def trials():
    # Each session found the machine half as fast as the one before: the ratios do not show it.
    return [
        measurement(1, "one-process", 400.0), measurement(1, "stream", 380.0),
        measurement(2, "one-process", 200.0), measurement(2, "flower", 80.0),
        measurement(3, "one-process", 100.0), measurement(3, "stream", 97.0),
        measurement(4, "one-process", 50.0), measurement(4, "flower", 20.0),
    ]  # fmt: skip


def report(**changes):
    chosen = settings(**changes)
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings=chosen,
        measurements=tuple(trials()),
        summaries=summarise(chosen, trials()),
    )


def test_rate_is_the_median_after_the_warmup():
    # 8/2, 8/1, 4/1 images/s; the first step is warm-up.
    assert rate([100.0, 2.0, 1.0, 1.0], [8, 8, 8, 4], 1, ()) == 4.0
    assert rate([100.0, 2.0, 1.0], [8, 8, 8], 1, ()) == 6.0


def test_steps_that_a_stop_cut_are_not_timed():
    assert rate([100.0, 2.0, 60.0, 1.0], [8, 8, 8, 8], 1, (2,)) == 6.0
    # One of the warm-up may be cut, too.
    assert timed(4, 1, (0, 2)) == [1, 3]
    with pytest.raises(RunError, match="fewer --turns"):
        timed(2, 1, (1,))


def test_spread():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, low=1.0, high=10.0)


def test_summary_compares_within_a_repetition():
    alone, stream, flower = summarise(settings(), trials())
    assert [summary.mode for summary in (alone, stream, flower)] == ["one-process", "stream", "flower"]
    assert alone.ratio is None
    assert alone.bytes_up_per_image is None
    assert alone.images_per_s == Spread(median=150.0, low=50.0, high=400.0)
    assert alone.step_s.high == pytest.approx(8 / 50)
    assert stream.ratio == Spread(median=0.96, low=0.95, high=0.97)
    assert flower.ratio == Spread(median=0.4, low=0.4, high=0.4)
    assert (stream.bytes_up_per_image, stream.bytes_down_per_image) == (1000.0, 1100.0)
    assert stream.step_s.high == pytest.approx(8 / 97)
    assert stream.peak_bytes == {"Lower": 9_000_000, "Upper": 1_500_000}
    assert stream.pss_bytes == {"Lower": 2_000_000}
    assert stream.startup_s == Spread(median=7.0, low=6.0, high=8.0)


def test_modes_not_tried_are_left_out():
    assert [summary.mode for summary in summarise(settings(), trials()[:2])] == ["one-process", "stream"]


def test_a_stamp_noticed_too_late_makes_no_negative_phase():
    assert phases([("begin", 1.0), ("a", 2.0), ("b", 5.0), ("c", 4.0)]) == {"a": 1.0, "b": 2.0, "c": 0.0}


def test_a_report_survives_its_file(tmp_path):
    path = tmp_path / "throughput.json"
    written = report()
    reports.save(path, written)
    assert reports.load(path, Report) == written
    with pytest.raises(RunError, match="cannot be written"):
        reports.save(tmp_path / "absent" / "throughput.json", written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no result file"),
        ('{"benchmark": "throughput", "version": 2}', "no result file"),
        ('{"benchmark": "throughput", "version": 99}', "expected version 2"),
        ("\xff", "no result file"),
    ],
)
def test_a_file_that_is_not_a_result(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(RunError, match=message):
        reports.load(path, Report)


def test_other_benchmarks_are_passed_over(tmp_path):
    path = tmp_path / "another.json"
    path.write_text('{"benchmark": "another"}')
    assert reports.load(path, Report) is None
    with pytest.raises(RunError, match="cannot be read"):
        reports.load(tmp_path / "absent.json", Report)


def test_tables_have_a_cell_for_every_column():
    made = report().tables
    for head, rows in made:
        assert rows
        assert {len(row) for row in rows} == {len(head)}
    (_, rates), (_, times), (_, memory), (_, startup) = made
    assert rates[0] == ("one-process", "150.0 (50.0 to 400.0)", "-", "-", "-")
    assert rates[1] == ("stream", "238.5 (97.0 to 380.0)", "0.960 (0.950 to 0.970)", "1.0", "1.1")
    assert rates[2][2] == "0.400"
    assert times[1][2:] == ("0.300", "0.500", "0.200")
    assert ("stream", "Lower", "9", "2") in memory
    assert ("stream", "largest Upper process", "2", "-") in memory
    assert startup[1] == ("stream", "7.0 (6.0 to 8.0)", "SuperLink 2.0, nodes 5.0")


def test_the_report_on_a_terminal(capsys):
    show(report())
    shown = capsys.readouterr().out
    for expected in (
        "digits, resnet18, batch 128, wire bfloat16",
        "0.960 (0.950 to 0.970)",
        "2 repetitions",
        "1 turn:",
    ):
        assert expected in shown


def test_the_page_names_the_command_that_measures_again():
    asked = report(config={"dataset": "../data/cifar10", "uppers": 2, "autocast": True}, round_at_cut=True)
    text = page.render({"throughput-b.json": report(), "throughput-a.json": asked})
    assert text.index("## throughput-a") < text.index("## throughput-b")
    assert "| stream | 238.5 (97.0 to 380.0) | 0.960 (0.950 to 0.970) | 1.0 | 1.1 |" in text
    line = asked.command
    assert line in text
    given = make_parser().parse_args(line.split()[3:])
    told = read_config(given).to_mapping()
    assert {key: told[key] for key in asked.settings.config} == asked.settings.config
    assert (given.steps, given.turns, given.warmup, given.repetitions, given.threads) == (2, 1, 1, 2, 2)
    assert given.round_at_cut
    assert given.transports == ("stream", "flower")


def test_the_committed_page_is_the_one_made_of_the_committed_results(capsys):
    assert main(["--page", *(str(path) for path in sorted((DOCS / "results").glob("*.json")))]) == 0
    assert capsys.readouterr().out == (DOCS / "benchmarks.md").read_text("utf-8")


def test_a_pattern_that_fits_nothing_is_no_result_yet(tmp_path, capsys):
    out = tmp_path / "benchmarks.md"
    assert main(["--page", str(tmp_path / "*.json"), "--out", str(out)]) == 0
    assert "There is no result file yet" in out.read_text("utf-8")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "at least 1"),
        (["--warmup", "0"], "at least 1"),
        (["--turns", "0"], "at least 1"),
        (["--repetitions", "x"], "whole number"),
        (["--transports", "pigeon"], "expected some of stream,flower"),
        (["--transports", "stream,stream"], "none of them twice"),
        (["--transports", ""], "one value or more"),
        (["--wire", "float64"], "invalid choice"),
        (["--batch-size", "1"], "batch-size: BatchNorm needs 2 or more images"),
        (["colour=red"], "unknown setting colour"),
        (["batch-size"], "expected KEY=VALUE"),
        (["rounds=2"], "see --steps"),
        (["resume=x"], "the benchmark decides it"),
        (["restore=x"], "the benchmark decides it"),
        (["--batch-size", "8", "batch-size=8"], "given twice"),
        (["--page", "--json"], "--page takes"),
    ],
)
def test_usage_errors_end_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_written_or_read_ends_with_1_before_anything_starts(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "absent" / "x.json")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert main(["--page", str(tmp_path / "absent.json")]) == 1
    assert main(["--dataset", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_settings_of_the_runs():
    parse = make_parser().parse_args
    assert read_config(parse([])) == RunConfig.from_mapping(DEFAULTS)
    config = read_config(parse(["--wire", "int8", "--patch-size", "8x8", "--autocast", "lr=0.5", "uppers=2"]))
    assert (config.wire.wire_activations, config.wire.wire_gradients) == ("int8", "int8")
    assert (config.patches.patch_size, config.machine.autocast, config.training.lr, config.patches.uppers) == (
        (8, 8),
        True,
        0.5,
        2,
    )
    with pytest.raises(ConfigError):
        read_config(parse(["transport=stream"]))


def test_what_the_benchmark_decides_are_settings():
    assert set(DECIDED) | set(DEFAULTS) <= known_settings().keys()
    assert not set(DECIDED) & set(DEFAULTS)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["ray::ClientAppActor.run"], "Upper"),
        (["ray::ClientAppActor"], "Upper"),
        (["/bin/python", "/bin/flwr-simulation", "--token", "x"], "Lower"),
        (["/bin/python", "/bin/flower-superexec"], "Flower"),
        (["ray::IDLE"], "Flower"),
        ([], "Flower"),
    ],
)
def test_roles_of_processes(command, role):
    assert role_of(command) == role


class FakeProcess:
    def __init__(self, *command):
        self.pid, self._command = os.getpid(), command

    def cmdline(self):
        return list(self._command)

    def create_time(self):
        return hash(self._command)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no high-water marks")
def test_memory_of_processes():
    watch = MemoryWatch()
    family = [FakeProcess("ray::ClientAppActor"), FakeProcess("python", "flwr-simulation"), FakeProcess("raylet")]
    family.append(FakeProcess("gcs"))
    watch.poll(family, shares=True)
    watch.poll(family)
    seen = watch.processes()
    assert [process.role for process in seen] == ["Lower", "Upper", "Flower"]
    assert 0 < seen[0].peak_bytes <= peak()
    assert seen[2].peak_bytes >= 2 * seen[0].peak_bytes * 0.99
    assert peak("absent") == 0


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_bytes_of_the_evaluation_are_exactly_those_of_its_frames(stores_for, tmp_path, codec):
    config = RunConfig.of(
        max_train=8, max_test=5, batch_size=4, evaluate_batch_size=2, rounds=1, steps_per_round=1,
        wire_activations=codec, wire_gradients=codec,
    )  # fmt: skip
    stores = stores_for(config)
    expected = evaluation_bytes(config, stores)
    with_it, without = (_bytes(config, stores, tmp_path / str(evaluate), evaluate) for evaluate in (True, False))
    assert (with_it[0] - without[0], with_it[1] - without[1]) == expected


def _bytes(config, stores, folder, evaluate):
    federation = Federation(config, stores, folder)
    exchange = LocalExchange(federation.uppers, federation.wire)
    federation.driver.run(exchange, 1, evaluate=evaluate)
    return sum(exchange.bytes_up().values()), sum(exchange.bytes_down().values())
