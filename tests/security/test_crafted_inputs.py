"""What strangers make and a user reads: pictures, names of classes, predictions, what nodes say of themselves."""

from __future__ import annotations

import csv
import os
import re
import stat
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from psl_flower.cli.main import main
from psl_flower.engine.rounds import Predictions
from psl_flower.errors import FrameMismatch, RunError
from psl_flower.flower.messages import failure_of
from psl_flower.runs.mistakes import columns_of
from psl_flower.runs.page import render
from psl_flower.runs.predictions import TABLE, write_table
from psl_flower.runs.summary import Summary
from psl_flower.text import cell, from_cell
from psl_flower.wire import messages as wire
from psl_flower.wire.node_messages import Inventory, NodeTask, decode, encode
from psl_flower.wire.questions import CONFIG_RECORD, Parcel
from tests.unit.tiny_run import make_run

FORMULAS = ('=HYPERLINK("http://x","y")', "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "'=1")
LINE = "x\n2026-01-01 00:00:00,000 INFO run completed\x1b]0;owned\x07\r"


# Pictures.

_EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["cat.png", "cat.eps", "cat"])
def test_postscript_called_a_picture_starts_no_program(tmp_path: Path, name: str) -> None:
    """Pillow hands it to Ghostscript, which runs it."""
    started, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(stat.S_IRWXU)
    folder = tmp_path / "pictures"
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / kind / f"{k}.png")
    (folder / "cats" / name).write_bytes(_EPS)
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    make_run(tmp_path)
    commands = [["inspect", str(folder)], ["predict", str(folder / "cats" / name), "--workspace", str(tmp_path)]]
    for command in commands:
        done = subprocess.run(
            [Path(sys.executable).with_name("psl"), *command], env=environment, capture_output=True, text=True,
            timeout=120, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert not started.exists(), done.stdout + done.stderr
        assert "Traceback" not in done.stderr


# Names of classes.


@pytest.fixture
def hostile_run(tmp_path: Path):
    """A run whose classes have names that a page, a table or a plot might run."""
    run, _ = make_run(tmp_path)
    description = run.read_description()
    names = ("<script>alert(1)</script>", *FORMULAS, "<img src=x onerror=alert(1)>", "$\\frac$", "</text></svg><b>")
    run.write_description(msgspec.structs.replace(description, class_names=names[: description.num_classes]))
    test = description.samples_of("test")
    label = np.arange(len(test)) % description.num_classes
    wrong = (label + 1) % description.num_classes
    confidence = np.full(len(test), 0.9, np.float32)
    run.write_predictions(Predictions(sample=test, label=label, predicted=wrong, confidence=confidence, loss=0.5))
    run.append_metrics(
        {"round": 1, "step": 2, "loss": 1.0, "accuracy": 0.0, "seconds": 1.0, "bytes_up": 1, "bytes_down": 1}
    )
    return run


def test_a_report_runs_nothing_that_a_name_says(hostile_run) -> None:
    page = render(Summary.of(hostile_run))
    assert "&lt;script&gt;alert(1)" in page
    found: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, attrs))

    Tags().feed(page)
    tags = {tag for tag, _ in found}
    assert {"svg", "table"} <= tags and not {"script", "img", "b", "a", "iframe"} & tags
    assert not [name for _, attributes in found for name, _ in attributes if name.startswith("on")]


def test_tables_have_no_formulas(hostile_run, tmp_path: Path) -> None:
    write_table(hostile_run, hostile_run.read_description())
    table = tmp_path / "classes.csv"
    assert main(["evaluate", "tiny", "--workspace", str(tmp_path), "--csv", str(table)]) == 0
    found = []
    for path in (hostile_run.path / TABLE, table):
        with path.open(newline="") as file:
            found += [text for row in csv.reader(file) for text in row]
    assert '\'=HYPERLINK("http://x","y")' in found
    numbers = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")
    assert [text for text in found if re.match(r"[=+\-@\t\r]", text) and not numbers.fullmatch(text)] == []


@pytest.mark.parametrize("text", [*FORMULAS, "cat", "-1", "+1.5e3", "", "'cat", "''=1", "a=b"])
def test_a_cell_is_read_as_it_was(text: str) -> None:
    assert from_cell(cell(text)) == text
    assert (cell(text) == text) == (text in ("cat", "-1", "+1.5e3", "", "'cat", "a=b"))


# Predictions, which a server makes and a restorer reads.


def _arrays(count: int) -> dict[str, np.ndarray]:
    numbers = np.zeros(count, np.int64)
    return {
        "sample": numbers, "label": numbers, "predicted": numbers, "confidence": numbers.astype(np.float32),
        "split": np.full(count, "test"),
    }  # fmt: skip


def test_predictions_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    np.savez_compressed(path, **_arrays(3_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(RunError, match="is damaged"):
        columns_of(path, "test")


def test_predictions_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    np.savez(path, **_arrays(10))
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    for header in (
        "{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (10,",
        "{'descr': '|O', 'fortran_order': False, 'shape': (10,), }",
        "__import__('os').abort()",
    ):
        crafted = np.lib.format.magic(1, 0) + _header(header) + bytes(80)
        with zipfile.ZipFile(path, "w") as file:
            for name, content in parts.items():
                file.writestr(name, crafted if name == "sample.npy" else content)
        with pytest.raises(RunError, match="is damaged"):
            columns_of(path, "test")


def _header(text: str) -> bytes:
    padded = text.ljust(117) + "\n"
    return len(padded).to_bytes(2, "little") + padded.encode()


# What nodes and the server say of themselves.


def _reply(told: RecordDict | Error, monkeypatch: pytest.MonkeyPatch) -> Message:
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    return Message(told, reply_to=Message(RecordDict(), dst_node_id=1, message_type="query"))


def test_a_node_writes_no_lines_into_the_servers_log(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Parcel(wire.Failed(kind=LINE, message=LINE))
    content = RecordDict({CONFIG_RECORD: ConfigRecord(dict(failed.values()))})
    for reply in (_reply(content, monkeypatch), _reply(Error(code=0, reason=f"a{LINE}"), monkeypatch)):
        found = str(failure_of(reply, "node 1"))
        assert found.isprintable() and "owned" in found


def test_a_node_that_was_out_of_memory_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = (
        "<class 'ray.exceptions.OutOfMemoryError'>:<'Task was killed due to the node running low on memory.\nRefer'>"
    )
    found = str(failure_of(_reply(Error(code=0, reason=reason), monkeypatch), "node 1"))
    assert found.startswith("node 1: out of memory") and "batch size" in found


def test_an_unknown_field_is_named_on_one_line() -> None:
    data = msgspec.msgpack.encode({"partition": 1, LINE: 1})
    with pytest.raises(FrameMismatch) as caught:
        decode(data, Inventory, "node 1")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "change", [{"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"threads": 10**9}, {"threads": -1}]
)
def test_a_server_makes_no_node_wait_for_ever(change: dict[str, float]) -> None:
    task = NodeTask(run="run", parties=(0,), settings=b"", activations="float32", gradients="float32", timeout_s=1.0)
    assert decode(encode(task), NodeTask, "the server") == task
    values = msgspec.to_builtins(task) | {"settings": b""} | change
    with pytest.raises(FrameMismatch):
        decode(msgspec.msgpack.encode(values), NodeTask, "the server")


# Names on the command line.


def test_a_folder_that_is_no_run_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text("")
    for name in ("../other", str(other), "..", "tiny/../../other"):
        assert main(["rm", name, "--workspace", str(tmp_path)]) == 2
        assert "expected the name of a run" in capsys.readouterr().err
    assert other.is_dir() and (tmp_path / "runs" / "tiny").is_dir()


# The folder of a run, which may come from another machine.

_DEEP = b"[" * 200_000 + b"]" * 200_000
DAMAGE = {
    "status.json, deep": ("status.json", b'{"state":"completed","x":' + _DEEP + b"}"),
    "status.json, beyond the years": ("status.json", b'{"state":"completed","updated":1e300}'),
    "config.toml, deep": ("config.toml", b"x=" + _DEEP),
    "metrics.jsonl, cut": ("metrics.jsonl", b'{"round": \n'),
    "metrics.jsonl, deep": ("metrics.jsonl", _DEEP + b"\n"),
    "metrics.jsonl, words": ("metrics.jsonl", b'{"round": 1, "step": 2, "seconds": "y"}\n'),
    "metrics.jsonl, nothing": ("metrics.jsonl", b"{}\n"),
    "manifest.json, deep": ("manifest.json", b'{"x":' + _DEEP + b"}"),
}


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_a_crafted_run_is_one_error_and_hides_no_other_run(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = make_run(tmp_path)
    (run.path / name).write_bytes(content)
    assert main(["runs", "--workspace", str(tmp_path)]) == 0
    assert "tiny" in capsys.readouterr().out
    status = main(["report", "tiny", "--workspace", str(tmp_path)])
    said = capsys.readouterr().err
    assert (status, said) == (0, "") or (status == 1 and said.startswith("error: ") and said.count("\n") == 1)


@pytest.mark.parametrize("predicted", [10, 10**9, 2**62, -1])
def test_classes_that_a_run_has_not(predicted: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = make_run(tmp_path)
    test = run.read_description().samples_of("test")
    wrong, sure = np.full(len(test), predicted), np.full(len(test), 0.9, np.float32)
    run.write_predictions(Predictions(sample=test, label=wrong * 0, predicted=wrong, confidence=sure, loss=0.5))
    (run.model / "model.safetensors").unlink()  # so that what the server noted is shown
    for command in ("report", "evaluate"):
        assert main([command, "tiny", "--workspace", str(tmp_path)]) == 1
        assert "names classes that the run has not" in capsys.readouterr().err
