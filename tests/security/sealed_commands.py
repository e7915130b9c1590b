"""The owner's and the restorers' commands as tests run them, and how they seal a part of the digits for two nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from psl_flower.cli.main import make_app
from psl_flower.data.sources import open_dataset
from psl_flower.errors import PslError
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.numbering import secret_orders

app = make_app()
PEOPLE = [("owner", "owner"), ("node", "node0"), ("node", "node1"), ("lower", "lower")]
PEOPLE += [("restorer", name) for name in ("alice", "bob", "carol")]


def psl(*arguments: str | Path, status: int = 0) -> Result:
    """Run a command that should succeed, or end with another exit status."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def refused(error: type[PslError], *arguments: str | Path) -> str:
    """Run a command that should be refused; return the message."""
    with pytest.raises(error) as caught:
        CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert type(caught.value) is error
    return str(caught.value)


def sealing(folder: Path, out: str = "sealed", *more: str) -> list[str]:
    """Return the arguments that seal 60 training and 20 test images of the digits for two nodes."""
    arguments = ["ingest", "digits", "--out", str(folder / out), "--patch-size", "8x8", "--uppers", "2"]
    arguments += ["--owner-key", str(folder / "owner.key"), "--max-train", "60", "--max-test", "20"]
    for m in range(2):
        arguments += ["--node-key", str(folder / f"node{m}.key.pub")]
    for name in ("alice", "bob", "carol"):
        arguments += ["--restorer", f"{name}={folder / name}.key.pub"]
    return [*arguments, "--threshold", "2", "--lower-key", str(folder / "lower.key.pub"), *more]


def make_keys(folder: Path) -> None:
    """Make a key for each of the people."""
    for role, name in PEOPLE:
        psl("keygen", role, "--out", folder / f"{name}.key")


def originals(folder: Path) -> np.ndarray:
    """Return the images of the digits that `sealing` seals, (N, H, W, C) as they are numbered."""
    source, manifest = open_dataset("digits", max_train=60, max_test=20), manifests.load(folder / "sealed").manifest
    orders = secret_orders(manifest, keyfile.load(folder / "owner.key"), {"train": 60, "test": 20})
    return np.stack([image for split, order in orders.items() for image, _ in source.samples(split, 0, order)])


def another_label(folder: Path, *images: int, but: int = -1) -> str:
    """Return a label that none of these images of the sealed digits has; not the one named either."""
    manifest = manifests.load(folder / "sealed").manifest
    labels_N = LabelBook(folder / "sealed").read(manifest, keyfile.load(folder / "owner.key")).labels_N
    return str(min(set(range(10)) - {but, *(int(labels_N[image]) for image in images)}))
