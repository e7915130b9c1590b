"""Flower ServerApps and their wiring."""
