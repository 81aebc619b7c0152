"""Try the step of the largest learning rate, and shrink it while f rises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_MAX_TRIES, _SHRINK = 4, 0.25


class Trial(NamedTuple):
    """The result of trying a step.

    Attributes:
      factor: Share of the step after which f does not rise.
      rises: Whether f rises after the shortest step tried, too.
      num_values: Function values taken.
    """

    factor: float
    rises: bool
    num_values: int


def try_step(
    value_at_sum: Callable[[dict[int, float]], Any],
    pairs: np.ndarray,
    distance: float,
    rate_of: Callable[[int], float],
    value: float,
    allowed: float,
    dim: int,
) -> Trial:
    """Try a step of `zo_sgd` along the n directions that have a pair of finite values.

      sₖ = (f(x + t·uₖ) − f(x − t·uₖ)) / 2t          t = `distance`
      g  = d / n · Σₖ sₖ uₖ
      x − factor · rate(n) · g

    with factor = 1, 1/4, 1/16, 1/64 until f rises above `value` by no more than
    `allowed`. If it always does, the trial says nothing and the factor is 1.
    """
    slopes = (pairs[:, 0] - pairs[:, 1]) / (2 * distance)
    known = np.flatnonzero(np.isfinite(slopes))
    step = rate_of(len(known)) * dim / len(known) * slopes[known]
    for i in range(_MAX_TRIES):
        factor = _SHRINK**i
        distances = {
            int(k): -factor * float(t) for k, t in zip(known, step, strict=True)
        }
        rise = float(value_at_sum(distances)) - value
        if rise <= allowed:  # False for NaN.
            return Trial(factor, False, i + 1)
    return Trial(1.0, True, _MAX_TRIES)
