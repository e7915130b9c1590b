"""Throughput: the same training federated and in one process, side by side; `python -m simulations.throughput`."""
