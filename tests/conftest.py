"""What all tests share: one thread, and tiny patch stores of the embedded digits, made once a session."""

import gc
import itertools
import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
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
_numbers = itertools.count()


def pytest_collection_finish() -> None:
    """Exclude all loaded modules from garbage collection.

    Python runs a full collection only after the number of objects has grown by a quarter. With a million loaded, the
    networks of a hundred tests piled up first: 9 GB in each worker.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def state_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the fixtures of several tests a user's state that is not that of who runs the tests."""
    os.environ["PSL_STATE"] = str(tmp_path_factory.getbasetemp() / "state")


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a user's state of its own."""
    monkeypatch.setenv("PSL_STATE", str(tmp_path_factory.getbasetemp() / f"state-{next(_numbers)}"))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Take the files that a test has the log written to out of it again; they go with the test's folder."""
    log = logging.getLogger("psl_flower")
    before = list(log.handlers)
    yield
    for handler in log.handlers:
        if handler not in before and isinstance(handler, logging.FileHandler):
            handler.close()
    log.handlers = before


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, and leave the number of threads as it was: trainings set it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def answered_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the answers of nodes, all of which are in this process, more often than over a network."""
    from psl_flower.flower import messages

    monkeypatch.setattr(messages, "_DEPLOYED_PULL_INTERVAL_S", 0.02)


@pytest.fixture(scope="session")
def stores_for(tmp_path_factory: pytest.TempPathFactory) -> StoresFor:
    """Return a function that gives the stores of a run's settings; equal requests share one set."""
    root: Path = tmp_path_factory.mktemp("stores")
    return lambda config: ensure_stores(root, store_request(config))
