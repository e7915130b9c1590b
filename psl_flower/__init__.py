"""Patch split learning: train an image recogniser although no server ever holds a recognisable image."""

__version__ = "0.1.0"
