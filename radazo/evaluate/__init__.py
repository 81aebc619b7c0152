"""Evaluate a function at the queries of a step: locally, on a mesh, or lazily."""

from radazo.evaluate.perturbed import perturbed_value_fn

__all__ = ["perturbed_value_fn"]
