"""What a trained network is for: reading it, evaluating it, doing without nodes, exporting it."""
