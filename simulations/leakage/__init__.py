"""Accuracy, bytes and what images give away, for several protections."""
