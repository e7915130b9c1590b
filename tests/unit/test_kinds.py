"""What a run does is a type: one file and one line make another kind; what old runs noted is still understood."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
import torch
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from psl_flower.cli.train import read_settings
from psl_flower.config import RunConfig
from psl_flower.config.fields import setting
from psl_flower.errors import ConfigError, RunError
from psl_flower.kinds import KINDS, Kind, Predict, Restore, Resume, Train, kind_of
from psl_flower.launch.running import local_paths, prepare
from psl_flower.runs.folder import RunFolder, create_run
from server.app import app as server_app
from server.run import ServerRun
from tests.paths import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Count(Kind):
    """A kind of one's own: counts the images of a split."""

    handler: ClassVar[str] = f"{__name__}:count_images"

    count: str = setting("", "split whose images are counted", choices=("", "train", "test"))
    count_notes: str = setting("", "file of notes", path=True)


def count_images(run: ServerRun[Count]) -> None:
    counted = len(run.stores.description.samples_of(run.kind.count))
    (run.folder.path / "counted.json").write_text(json.dumps({"nodes": run.node_task().run, "counted": counted}))
    run.reporter.end("completed", f"{counted} images")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(KINDS, "count", Count)
    return {
        "dataset": "digits", "max-train": 24, "max-test": 8, "stores": "plain", "workspace": str(tmp_path),
        "run-name": "counted", "count": "train", "lower-threads": torch.get_num_threads(),
    }  # fmt: skip


def test_another_kind_is_registered_with_one_line(given: dict[str, Any], tmp_path: Path) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    num_uppers, work = prepare(kind_of(given))
    assert (num_uppers, work.folder.path) == (4, tmp_path / "runs" / "counted")
    server_app(None, Context(1, 1, {}, RecordDict(), given))  # type: ignore[arg-type]
    assert json.loads((work.folder.path / "counted.json").read_text())["counted"] == 24
    status = work.folder.read_status()
    assert status is not None and (status.state, status.message) == ("completed", "24 images")
    assert f"run counted: files are in {work.folder.path}" in (work.folder.path / "log.txt").read_text()
    with pytest.raises(RunError, match="was made with count; it trained nothing that could be continued"):
        kind_of({"resume": "counted", "workspace": str(tmp_path)}).find()


def test_the_settings_of_another_kind_are_like_all_others(given: dict[str, Any], tmp_path: Path) -> None:
    asked, kind = read_settings(["count=test", f"count-notes={tmp_path}/../{tmp_path.name}"])
    assert isinstance(kind, Count)
    assert (kind.count, asked["count-notes"]) == ("test", str(tmp_path)) == (kind.count, kind.count_notes)
    assert local_paths({"count-notes": str(tmp_path)}) == {"count-notes": str(tmp_path)}
    assert kind_of(kind.to_mapping()) == kind
    for more, words in (
        ({"resume": "a"}, "count and resume contradict each other"),
        ({"count": "", "count-notes": "x"}, "count-notes: is set, but count is not"),
        ({"count": "all"}, "count: expected one of an empty text, train, test, got 'all'"),
        ({"cuont": "all"}, "unknown setting cuont; did you mean count?"),
    ):
        with pytest.raises(ConfigError, match=words):
            kind_of({"count": "train", **more})


def test_what_is_asked_for_decides_the_kind() -> None:
    assert kind_of({"lr": 0.5}) == Train(config=RunConfig.of(lr=0.5))
    assert kind_of({"resume": "a", "transport": "flower"}) == Resume(
        config=RunConfig.of(transport="flower"), resume="a"
    )
    assert kind_of({"restore": "a.psl", "run-name": "b"}) == Restore(config=RunConfig.of(run_name="b"), restore="a.psl")
    asked = {"predict": "a", "predict-split": "train", "predict-without": "0,3"}
    assert kind_of(asked) == Predict(predict="a", predict_split="train", predict_without="0,3")
    assert kind_of(asked).without == {0, 3}  # type: ignore[attr-defined]


def test_another_node_may_host_the_adaptation_net_of_a_resumed_run(tmp_path: Path) -> None:
    config = RunConfig.of(adaptation_server=True, adaptation_node="13", workspace=str(tmp_path))
    create_run(tmp_path, "old", "digits").write_config(config)
    given = {"resume": "old", "workspace": str(tmp_path), "adaptation-node": "14"}
    assert kind_of(given).find().config == config.replace(adaptation_node="14")


def test_a_run_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    """It noted what it did beside the settings of the training."""
    noted = RunConfig.of(run_name="old", lr=0.5).to_mapping()
    old = {"resume": "", "restore": "", "predict": "", "predict-split": "test", "predict-images": ""}
    old |= {"predict-without": "", "predict-light": False, "lighten": "", "lighten-with": ""}
    run = create_run(tmp_path, "old", "digits")
    (run.path / "config.toml").write_text(tomli_w.dumps(noted | old))
    resumed = kind_of({"resume": "old", "workspace": str(tmp_path)}).begin()
    assert resumed.config == RunConfig.of(lr=0.5, workspace=str(tmp_path))
    (run.path / "config.toml").write_text(tomli_w.dumps(noted | old | {"restore": "asked.psl"}))
    with pytest.raises(RunError, match="old: was made with restore; it trained nothing"):
        kind_of({"resume": "old", "workspace": str(tmp_path)}).find()


def test_a_restoration_is_no_training_to_continue(tmp_path: Path) -> None:
    made = kind_of({"restore": "asked.psl", "run-name": "answered", "workspace": str(tmp_path)}).begin()
    assert made.config.wire.transport == "flower"
    assert RunFolder(made.folder.path).instead == "restore"
    with pytest.raises(RunError, match="answered: was made with restore; it trained nothing"):
        kind_of({"resume": "answered", "workspace": str(tmp_path)}).begin()


ARGUMENTS = [["rounds=2"], ["resume=a"], ["predict=a", "predict-light=true"], ["restore=asked.psl"]]
ARGUMENTS += [["lighten=a", "lighten-with=max-drop=0.1 min-speed=1"], ["audit=a", "audit-images=b"]]


def test_arguments_are_read_without_torch() -> None:
    assert len(ARGUMENTS) == len(KINDS)
    code = "import sys\nfrom psl_flower.cli.train import read_settings\n"
    code += "".join(f"read_settings({arguments!r})\n" for arguments in ARGUMENTS)
    code += "print(sorted({'torch', 'flwr', 'onnx', 'onnxruntime', 'ray'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
