"""Measures size, speed and accuracy of lightened models against the reference; `python -m simulations.lightening`."""
