"""Patch stores: one per Upper node."""
