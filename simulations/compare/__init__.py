"""Patch-split learning, the whole image and federated averaging on the same data; `python -m simulations.compare`."""
