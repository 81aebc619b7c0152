"""Evaluate a function at the queries of a step: locally, on a mesh, without copies."""

from radazo.evaluate.answers import Replayed, Told, Watched
from radazo.evaluate.perturbed import perturbed_value_fn

__all__ = [
    "Replayed",
    "Told",
    "Watched",
    "perturbed_value_fn",
]
