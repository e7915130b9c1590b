"""Datasets, opened as streams of images and labels."""
