"""What sealing costs: reading, ingesting and restoring patches, and memory; `python -m simulations.sealed_cost`."""
