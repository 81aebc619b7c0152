"""Choose the learning rate of a rule, on images and a seed that are not reported.

All rates form one batch. The first rate at which most images are fooled wins, unless
another gets there within the same call: the median of a rate that has not fooled most
images by then cannot be smaller. The other rates need not be run to the end.
"""

import numpy as np


def median_of(counts: np.ndarray) -> np.ndarray:
    """Return (rates,) medians over images of (rates, images); failures are infinite."""
    return np.median(counts, axis=1)


def is_decided(taken: int, steps: np.ndarray) -> bool:
    """Return whether no other rate can have a smaller median than the best one so far.

    Args:
      taken: Steps of all runs so far.
      steps: (rates, images) steps to success, or infinity.
    """
    medians = median_of(steps)
    at_best = median_of(np.minimum(steps, taken))  # As if all others succeeded now.
    best = np.argmin(medians)
    return bool(
        np.isfinite(medians[best])
        and np.all(np.delete((medians == at_best) | (at_best > medians[best]), best))
    )


def best_rate(counts: np.ndarray, values: np.ndarray) -> int:
    """Return the rate with the smallest median of `counts`, of equals by mean final f.

    Args:
      counts: (rates, images), function values to success, or infinity.
      values: (rates, images), f at the end.
    """
    return int(np.lexsort((values.mean(axis=1), median_of(counts)))[0])
