"""Flower ClientApps: the Upper node."""
