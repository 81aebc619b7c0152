"""Evaluate a function at the queries of a step."""
