"""Standard output that is closed, full, gone or of another encoding: the work is done, and no traceback follows."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.paths import ROOT


def psl(*arguments, **options):
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "psl_flower.cli.main", *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.PIPE, timeout=60, env=environment, **{"text": True} | options,
    )  # fmt: skip


def test_a_full_output_is_said(tmp_path):
    with open("/dev/full", "w") as full:
        done = psl("settings", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"
    with open("/dev/full", "w") as full:
        done = psl("keygen", "node", "--out", tmp_path / "a.key", stdout=full)
    assert done.returncode == 1 and "standard output" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "a.key").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_work_and_no_file_takes_their_place(tmp_path, closed):
    key = tmp_path / "a.key"
    command = f"'{sys.executable}' -m psl_flower.cli.main keygen node --out '{key}' {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert key.read_text().startswith("psl-flower secret key") and key.read_text().count("\n") == 6


def test_a_reader_that_has_gone_is_no_error():
    command = f"'{sys.executable}' -m psl_flower.cli.main settings | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_letters_that_a_terminal_lacks_are_escaped(tmp_path, encoding):
    for name in ("猫", "犬"):
        (tmp_path / "動物" / name).mkdir(parents=True)
        for k in range(5):
            Image.new("L", (4, 4), k).save(tmp_path / "動物" / name / f"{k}.png")
    done = psl(
        "inspect", tmp_path / "動物", "--out", tmp_path / "sheet.png",
        stdout=subprocess.PIPE, encoding="utf-8" if encoding == "ascii" else encoding, env={"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    # What prints takes ASCII for a mistake, and prints UTF-8.
    assert ("猫: 4" if encoding == "ascii" else "\\u732b: 4") in done.stdout
    done = psl(
        "inspect", tmp_path / "無", stdout=subprocess.PIPE, encoding=encoding, env={"PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "\\u7121" in done.stderr


def test_benchmarks_too():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "simulations.grid_choice"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr
