"""Chaos: a run whose processes are killed again and again, and its weights; `python -m simulations.chaos`."""
