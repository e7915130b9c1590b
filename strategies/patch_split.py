"""The patch-split strategy: holds the Lower model and drives split training through Flower's rounds.

In a ServerApp of your own, with models of your own for image patches:

    driver = RoundDriver(LowerEngine(my_lower, None, assignment, ...), task, smashed_shapes, checkpoints)
    strategy = PatchSplit(driver, node_task, WireSettings(transport="stream"))
    strategy.start(grid, initial_arrays=ArrayRecord(my_lower.state_dict()), num_rounds=10)

and on the nodes a ClientApp from `clients.upper_app.upper_app(build=...)`, where `build` makes the Upper models. Uppers
of one shape and float32 can be averaged:
`RoundDriver(..., averaging=Averaging(every=8, weight_count=weight_count(upper)))`
(`psl_flower.engine.upper_averaging`), and `averaged=True` in the nodes' `UpperOptions`. For other data than image
patches there is `psl_flower.flower.SplitLearning`.
"""

from __future__ import annotations

from psl_flower.flower.rounds import RoundsStrategy


class PatchSplit(RoundsStrategy):
    """Trains a Lower model on the server with Upper models on the nodes; its driver is a `RoundDriver`."""
