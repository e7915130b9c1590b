"""What all tests share: one thread, and tiny patch stores of the embedded digits, made once a session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from psl_flower.config import RunConfig
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.store_set import StoreSet, store_request

torch.set_num_threads(1)
# The helpers' asserts show what they compared, as those of the tests do.
pytest.register_assert_rewrite("tests")

StoresFor = Callable[[RunConfig], StoreSet]


@pytest.fixture(scope="session")
def stores_for(tmp_path_factory: pytest.TempPathFactory) -> StoresFor:
    """Return a function that gives the stores of a run's settings; equal requests share one set."""
    root: Path = tmp_path_factory.mktemp("stores")
    return lambda config: ensure_stores(root, store_request(config))
