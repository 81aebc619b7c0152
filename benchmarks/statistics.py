"""Means, and distribution-free intervals of medians and shares.

The units must be independent. Runs of one image with different seeds are not: take the
image as the unit, with the median over its seeds as its number.
"""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np
import scipy.stats


class MedianInterval(NamedTuple):
    """A median with an interval between two order statistics.

    Attributes:
      median: Of the sample.
      low, high: Ends of the interval, elements of the sample.
      level: Probability that such an interval contains the median of the population.
    """

    median: float
    low: float
    high: float
    level: float


def median_interval(x: Any, level: float = 0.95) -> MedianInterval:
    """Return the narrowest pair of order statistics whose level is at least `level`.

      P(x₍ᵣ₎ ≤ median ≤ x₍ₙ₋ᵣ₊₁₎) ≥ 1 − 2 · P(B < r),  B ~ Binomial(n, ½)

    Infinite elements (runs without success) are valid. A sample of less than 6 has no
    pair at 0.95; it gets its range, with the level of the range.
    """
    x = np.sort(np.asarray(x, float))
    n = len(x)
    below = np.cumsum([math.comb(n, k) for k in range(n)]) / 2.0**n
    r = max(1, int(np.sum(1 - 2 * below >= level)))
    return MedianInterval(
        float(np.median(x)),
        float(x[r - 1]),
        float(x[n - r]),
        float(1 - 2 * below[r - 1]),
    )


def geometric_mean(x: Any) -> float:
    """Return exp(mean(log x)) of non-negative numbers; 0 if one of them is."""
    x = np.asarray(x, float)
    return float(np.exp(np.mean(np.log(x)))) if x.all() else 0.0


def wilson_interval(
    successes: int, trials: int, level: float = 0.95
) -> tuple[float, float]:
    """Return Wilson's score interval of a share, which stays within [0, 1]."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    share, z2 = successes / trials, z**2 / trials
    middle = share + z2 / 2
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return max(0.0, low), min(1.0, high)


def mean_interval(x: Any, level: float = 0.95) -> tuple[float, float]:
    """Return the mean, and half of Student's interval around it."""
    x = np.asarray(x, float)
    if len(x) < 2:
        return float(np.mean(x)), math.inf
    quantile = scipy.stats.t.ppf((1 + level) / 2, len(x) - 1)
    half = quantile * np.std(x, ddof=1) / math.sqrt(len(x))
    return float(np.mean(x)), float(half)
