"""Choose a learning rate by a walk on a logarithmic grid."""

from collections.abc import Callable, Sequence
from typing import TypeVar

REACH = 4  # Largest distance from the first rate, in powers of ten.
Score = TypeVar("Score", float, tuple[float, float])


def tune(
    score: Callable[[float], Score], first: float, parts: Sequence[float]
) -> dict[float, Score]:
    """Return scores by rate, of a walk over first · 10ᵉ to the lowest, then finer."""
    tried: dict[float, Score] = {}
    exponents: dict[float, float] = {}
    here = 0.0
    for step in parts:
        moved = True
        while moved:
            for e in (here, here - step, here + step):
                if e not in exponents and abs(e) <= REACH:
                    exponents[e] = first * 10**e
                    tried[exponents[e]] = score(exponents[e])
            lowest = min(exponents, key=lambda e: (tried[exponents[e]], e))
            here, moved = lowest, lowest != here
    return tried


def best(tried: dict[float, Score]) -> float:
    """Return the rate of the lowest score, of equals the smallest."""
    return min(tried, key=lambda rate: (tried[rate], rate))
