"""Datasets, and the patch stores made from them."""
