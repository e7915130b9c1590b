"""Starting Flower's programs: a local SuperLink for simulations, and `flwr run`. Flower itself is not imported."""
