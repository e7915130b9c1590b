"""Compares split with vertical learning by Flower rounds, on tabular data; `python -m simulations.vertical`."""
