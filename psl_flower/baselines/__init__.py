"""Baselines of patch-split learning: whole images in one process, federated averaging; and pretraining."""
