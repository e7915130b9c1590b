"""How clients share the training images."""

import numpy as np
import pytest

from clients.partitions import divide
from psl_flower.errors import ConfigError

pytest.importorskip("flwr_datasets", reason="extra compare is not installed")

SAMPLES = np.arange(100, 300, dtype=np.int64)
LABELS = np.repeat(np.arange(10), 20)  # sorted by class


def parts(**changes):
    given = {"num_clients": 4, "kind": "iid", "alpha": 0.5, "seed": 3} | changes
    return divide(SAMPLES, LABELS, **given)


def skew(found):
    """Return the mean share that its largest class has of a client's images."""
    shares = [np.bincount(LABELS[part - 100], minlength=10).max() / len(part) for part in found]
    return float(np.mean(shares))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_every_image_has_one_client(kind):
    found = parts(kind=kind)
    assert [part.tolist() for part in found] == [part.tolist() for part in parts(kind=kind)]
    assert sorted(np.concatenate(found).tolist()) == SAMPLES.tolist()
    assert all((np.diff(part) > 0).all() for part in found)
    assert [part.tolist() for part in found] != [part.tolist() for part in parts(kind=kind, seed=4)]


def test_iid_parts_are_alike_though_the_images_are_sorted():
    found = parts()
    assert [len(part) for part in found] == [50, 50, 50, 50]
    assert skew(found) < 0.25


def test_a_small_alpha_makes_classes_differ():
    assert skew(parts(kind="dirichlet", alpha=0.1)) > skew(parts(kind="dirichlet", alpha=100.0)) + 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sorted"}, "expected one of iid, dirichlet"),
        ({"num_clients": 101}, "200 training images are too few for 101 clients"),
        ({"kind": "dirichlet", "num_clients": 60, "alpha": 0.001}, "larger dirichlet-alpha"),
    ],
)
def test_what_cannot_be_divided(changes, message):
    with pytest.raises(ConfigError, match=message):
        parts(**changes)
