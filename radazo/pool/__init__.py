"""Evaluate a function in workers that may fail."""
