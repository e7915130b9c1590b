"""Split learning beside vertical learning by Flower rounds, on tabular data; `python -m simulations.vertical`."""
