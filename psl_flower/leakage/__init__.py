"""Measures the leakage of smashed data: decoders rebuild images from what the Lower receives (`psl leak`).

The attacker is the server: it has the codes of the run's images from the finished network (or from several states of
it), and auxiliary images of the same kind, whose codes it can compute since it may query the trained Uppers. What these
decoders find is a lower bound: a stronger attacker may find more.
"""
