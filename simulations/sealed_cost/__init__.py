"""Measures what sealing costs in reading, ingesting, restoring and memory; `python -m simulations.sealed_cost`."""
