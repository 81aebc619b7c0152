"""Suggest a first smoothing distance and learning rate."""
