"""Use of a trained network: loading, evaluation, prediction without some nodes, export."""
