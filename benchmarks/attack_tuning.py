"""The learning rate of a rule, chosen on images and a seed that are not reported.

All rates are one batch. The first rate with which most images have fallen wins, unless
another gets there within the same call: a rate whose images have not fallen by then
cannot reach a median below it. So the others need not be run to the end.
"""

import numpy as np


def median_of(counts: np.ndarray) -> np.ndarray:
    """(rates,) medians over images of (rates, images), failures being infinite."""
    return np.median(counts, axis=1)


def is_decided(taken: int, steps: np.ndarray) -> bool:
    """Whether no other rate can have a smaller median than the best one so far.

    Args:
      taken: Steps of all runs so far.
      steps: (rates, images), those to success, or infinity.
    """
    medians = median_of(steps)
    at_best = median_of(np.minimum(steps, taken))  # If all were to succeed now.
    best = np.argmin(medians)
    return bool(
        np.isfinite(medians[best])
        and np.all(np.delete((medians == at_best) | (at_best > medians[best]), best))
    )


def best_rate(counts: np.ndarray, values: np.ndarray) -> int:
    """The rate with the least median of `counts`; of equals with the least mean f.

    Args:
      counts: (rates, images), function values to success, or infinity.
      values: (rates, images), f at the end.
    """
    return int(np.lexsort((values.mean(axis=1), median_of(counts)))[0])
