"""`psl restore --wrong-only`: the images that a run got wrong, on sealed digits."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from psl_flower import errors
from psl_flower.config import RunConfig
from psl_flower.runs.folder import RunFolder, create_run
from psl_flower.stores.prepare import prepare_stores
from tests.security.sealed_commands import psl, refused, sealing


def run_on(folder: Path, dataset: str) -> RunFolder:
    """Return the folder of a run on a dataset that was sealed in `folder`, as far as its stores."""
    config = RunConfig.of(dataset=str(folder / dataset), keys=str(folder), workspace=str(folder / "workspace"))
    run = create_run(config.workspace_path(), "", config.data.dataset)
    run.write_config(config)
    run.write_description(prepare_stores(config).description)
    return run


def test_only_what_a_run_got_wrong(folder: Path) -> None:
    psl(*sealing(folder))
    run = run_on(folder, "sealed").path
    # Images are numbered in a secret order, so each has another label in every sealing.
    labels_N = prepare_stores(RunFolder(run).read_config()).labels
    sample, wrong_N = np.array([2, 61, 70, 5]), (labels_N + 1) % 10
    np.savez(
        run / "predictions.npz",
        sample=sample,
        label=labels_N[sample],
        predicted=np.array([labels_N[2], *wrong_N[sample[1:]]]),
        confidence=np.array([0.9, 0.4, 0.8, 0.99], np.float32),
        split=np.array(["train", "test", "test", "train"]),
    )
    arguments: list[str | Path] = ["restore", "--manifest", folder / "sealed", "--wrong-only", run]
    arguments += ["--identity", folder / "alice.key", "--identity", folder / "bob.key"]
    psl(*arguments, "--split", "test", "--out", folder / "wrong")
    rows = list(csv.DictReader((folder / "wrong" / "images.csv").open()))
    assert [(row["image"], row["predicted"]) for row in rows] == [
        ("70", str(wrong_N[70])),
        ("61", str(wrong_N[61])),
    ]
    # By its name in the workspace, too; the error for another one is that of all commands.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSL_WORKSPACE", str(folder / "workspace"))
        arguments[4] = run.name
        assert "no such run (there: " in refused(
            errors.RunError, *arguments[:4], "nosuch", *arguments[5:], "--out", "no"
        )
        psl(*arguments, "--limit", "1", "--out", folder / "worst")
    arguments[4] = run
    assert sorted(p.name for p in (folder / "worst").iterdir()) == [
        "images.csv",
        "sheet-0001.png",
        "train-000005.png",
    ]
    # The same images sealed once more are another dataset, whose restorers know nothing of this run.
    psl(*sealing(folder, "second"))
    log = (folder / "sealed" / "audit.log").read_bytes()
    other = run_on(folder, "second").path
    (other / "predictions.npz").write_bytes((run / "predictions.npz").read_bytes())
    arguments[4] = other
    assert "a run on other stores" in refused(errors.OtherDataset, *arguments, "--out", folder / "none")
    authorising: list[str | Path] = ["authorise", *arguments[1:], "--out", folder / "asked.psl"]
    refused(errors.OtherDataset, *authorising)
    assert (folder / "sealed" / "audit.log").read_bytes() == log
    (run / "predictions.npz").write_bytes(b"no")
    arguments[4] = run
    refused(errors.RunError, *arguments, "--out", folder / "none")
