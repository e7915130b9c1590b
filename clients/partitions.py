"""Divides training images over the clients of federated averaging, with flwr-datasets' partitioners.

Shape suffixes: N training samples, n those of one client.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from psl_flower.baselines.fedavg import PARTITIONS
from psl_flower.errors import ConfigError

# BatchNorm needs two samples in a batch.
_FEWEST = 2


def divide(
    samples_N: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    *,
    num_clients: int,
    kind: str,
    alpha: float,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Return the global indices (n,), ascending, of the training samples of every client.

    Parameters
    ----------
    samples_N, labels_N : ndarray
        Global indices of the training samples, and their classes; int64.
    num_clients : int
        Parts, 1 or more.
    kind : {"iid", "dirichlet"}
        Equal parts of the shuffled samples, or for every class shares drawn from a Dirichlet distribution.
    alpha : float
        Its concentration: the smaller, the more the clients' classes differ. Without effect on "iid".
    seed : int
        Of everything drawn; the same seed gives every party the same division.

    Raises
    ------
    ConfigError
        If flwr-datasets is not installed, there is no such kind, or there are too few samples for the clients.
    """
    if kind not in PARTITIONS:
        raise ConfigError(f"partition: expected one of {', '.join(PARTITIONS)}, got {kind!r}")
    if len(samples_N) < _FEWEST * num_clients:
        raise ConfigError(
            f"{len(samples_N)} training images are too few for {num_clients} clients with {_FEWEST} or more each"
        )
    try:
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"partition: needs {error.name}; install the extra: pip install 'psl-flower[compare]'"
        ) from None

    table = Dataset.from_dict({"sample": samples_N, "label": labels_N})
    partitioner: Partitioner
    if kind == "iid":
        partitioner = IidPartitioner(num_partitions=num_clients)
        # It cuts the rows in their order, in which classes may follow one another.
        table = table.shuffle(seed=seed % 2**32)
    else:
        partitioner = DirichletPartitioner(
            num_partitions=num_clients, partition_by="label", alpha=alpha, min_partition_size=_FEWEST, seed=seed % 2**32
        )
    partitioner.dataset = table
    try:
        with warnings.catch_warnings():
            # It warns at every draw that leaves a client too little; all that matters is whether one succeeds.
            warnings.simplefilter("ignore", UserWarning)
            parts = [partitioner.load_partition(client)["sample"] for client in range(num_clients)]
    except ValueError as error:
        # After ten draws in which some client got too little.
        raise ConfigError(f"partition: {str(error).splitlines()[0]}; choose a larger dirichlet-alpha") from None
    return [np.sort(np.asarray(part[:], dtype=np.int64)) for part in parts]
