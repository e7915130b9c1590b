"""Comparisons, benchmarks and studies: things that run the rest."""
