"""The trained network on test images: its own dataset's, from the patch stores, or another dataset's.

Shape suffixes: B batch, K classes, N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config.data import pixel_range_text
from psl_flower.data.account import Account
from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import open_dataset
from psl_flower.engine.rounds import Predictions, predictions
from psl_flower.errors import ConfigError, DataError
from psl_flower.inference.trained_model import TrainedModel
from psl_flower.patches.store import read_all_positions
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.text import OnProgress

# Settings that say how a run's dataset was read.
_OWN = (
    "image_column", "label_column", "read_as", "train_split", "test_split", "split_column", "class_folder", "leave_out",
)  # fmt: skip
# Images uint8 (B, C, H, W) and classes int64 (B,).
Batch = tuple[torch.Tensor, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Images with their classes."""

    dataset: str  #: Dataset that they come from.
    num_images: int  #: N, 1 or more.
    batches: Iterator[Batch]  #: Images uint8 (B, C, H, W) and classes int64 (B,), numbered as the network's.
    account: Account | None = None  #: Account of the dataset, if one was opened for them.


def own_test_images(
    run: RunFolder, trained: TrainedModel, max_test: int = 0, progress: OnProgress | None = None
) -> LabelledImages:
    """Return the test split of the run's dataset, from its patch stores, which are made if they are missing.

    The run's workspace holds the stores. At most `max_test` images are used, drawn at random, the same ones every time;
    0: all.

    Raises
    ------
    DataError
        If the dataset is not the one that the run was trained on, as where files were added since.
    PslError
        Whatever `prepare_stores` raises.
    """
    _check_max(max_test)
    config, stores = trained.config, stores_of(run, trained, progress)
    samples_N = stores.description.samples_of("test")
    if 0 < max_test < len(samples_N):
        samples_N = np.sort(np.random.default_rng(0).permutation(samples_N)[:max_test])
    batches = images_in(stores, samples_N, config.training.evaluate_batch_size)
    return LabelledImages(dataset=config.data.dataset, num_images=len(samples_N), batches=batches)


def stores_of(
    run: RunFolder, trained: TrainedModel, progress: OnProgress | None = None, *, labels_version: int | None = None
) -> StoreSet:
    """Return the patch stores of the run's dataset, which are made if they are missing.

    Parameters and errors are those of `own_test_images`, and of `prepare_stores`.
    """
    config = trained.config
    own = config.replace(workspace=str(run.path.parents[1]))
    stores = prepare_stores(own, progress, labels_version=labels_version)
    if stores.description.source != trained.description.source:
        raise DataError(
            f"{config.data.dataset}: is not as it was when run {run.name} was trained on it, so test images may be "
            "among those that it learnt; name a dataset with --dataset"
        )
    return stores


def other_test_images(trained: TrainedModel, dataset: str, max_test: int = 0, **asked: Any) -> LabelledImages:
    """Return the test split of any dataset whose classes are among the network's; nothing is stored.

    A dataset without a test split is divided as the run's settings say, so the run's own dataset at another place is
    divided as it was for training.

    Parameters
    ----------
    trained : TrainedModel
        The network.
    dataset : str
        As the setting of that name.
    max_test : int
        Images to use at most; 0: all.
    **asked
        How to read it, by the names of `SourceOptions`; by default as the run's dataset was read, where that can be.

    Raises
    ------
    DatasetNotFound, DataError
        If the dataset is not usable, or has a class that the network does not know.
    """
    _check_max(max_test)
    config, known = trained.config, trained.description.class_names
    decoder = trained.decoder()
    options = SourceOptions(
        test_fraction=config.data.test_fraction,
        seed=config.training.seed,
        max_test=max_test,
        pixel_range=pixel_range_text(decoder.pixel_range),
        background=decoder.background,
    )
    asked = {name: value for name, value in asked.items() if value}
    own = {name: value for name in _OWN if (value := config.value(name))}
    try:
        source = open_dataset(dataset, options, **(asked or own))
    except DataError:
        if asked or not own:
            raise
        source = open_dataset(dataset, options)  # a dataset without such columns, splits or folders
    unknown = [name for name in source.class_names if name not in known]
    if unknown:
        raise DataError(f"{dataset}: the network knows no class {unknown[0]!r}; it knows {', '.join(known[:20])}")
    classes = np.array([known.index(name) for name in source.class_names])

    def batches() -> Iterator[Batch]:
        samples = source.samples("test")
        while chunk := list(islice(samples, config.training.evaluate_batch_size)):
            yield trained.prepare([image for image, _ in chunk]), classes[[label for _, label in chunk]]

    return LabelledImages(
        dataset=dataset, num_images=source.num_samples("test"), batches=batches(), account=source.account()
    )


def evaluate(trained: TrainedModel, images: LabelledImages, progress: OnProgress | None = None) -> Predictions:
    """Return the network's predictions; `progress` is called as ("evaluate", images done, images in all).

    Raises
    ------
    CorruptImage, DataError, StoreError
        If an image or a store cannot be read.
    """
    logits, labels = [], []
    done = 0
    for images_BCHW, labels_B in images.batches:
        logits.append(trained.logits(images_BCHW))
        labels.append(labels_B)
        done += len(labels_B)
        if progress:
            progress("evaluate", done, images.num_images)
    return predictions(torch.cat(logits), np.arange(done), np.concatenate(labels))


def images_in(stores: StoreSet, samples_N: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
    """Yield the images of these samples (N,), joined from their patches, with their classes."""
    grid = stores.description.grid()
    with stores.opened() as opened:
        for start in range(0, len(samples_N), batch_size):
            samples_B = samples_N[start : start + batch_size]
            images_BCHW = grid.merge(read_all_positions(opened, samples_B))
            yield torch.from_numpy(np.ascontiguousarray(images_BCHW)), stores.labels[samples_B]


def _check_max(max_test: int) -> None:
    if max_test < 0:
        raise ConfigError(f"max-test: expected 0 or more, got {max_test}")
