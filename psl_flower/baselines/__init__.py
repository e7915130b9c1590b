"""Opponents of patch-split learning: the whole image in one process, and federated averaging."""
