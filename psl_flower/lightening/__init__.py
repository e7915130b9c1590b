"""Lightening: a network that fits the edge, found from a trained one (JP2025075101).

The run's network is the first model; a larger, second one is pruned and quantised into the third, until the third is
accurate and fast enough, or no degree of pruning can make it so.
"""
