"""noisyopt: `minimizeSPSA`, one pair of values a step along a Rademacher direction.

The gain `a` of the steps is tuned. Its decay rules are those of the package. The
distance of the pair starts at c = 0.01 instead of the default 1: these functions have
no noise, for which Spall advises a small one. The run returns its last parameters.
"""

import importlib.metadata

import numpy as np
from noisyopt import minimizeSPSA

from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace

VERSION = importlib.metadata.version("noisyopt")
DISTANCE = 0.01


def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    if algorithm != "SPSA":
        raise ValueError(algorithm)

    start = start.astype(np.float64)  # The package supports no other dtype.

    seen: list[float] = []

    def counted(x: np.ndarray) -> float:
        seen.append(problem.numpy_fn(x))
        return seen[-1]

    def after_step(x: np.ndarray) -> None:
        recorder.step(seen, lambda: problem.numpy_fn(x))
        seen.clear()

    # A rate that is too large overflows, which is a valid outcome.
    with np.errstate(all="ignore"):
        recorder = Recorder(problem.numpy_fn(start), num_values)
        np.random.seed(seed)  # The package draws from the global generator.
        result = minimizeSPSA(
            counted,
            start.copy(),  # The package changes it in place.
            niter=(num_values - 1) // 2,  # The package takes one more value at the end.
            paired=False,
            a=knob,
            c=DISTANCE,
            callback=after_step,
        )
        recorder.step(seen, lambda: problem.numpy_fn(result.x))
        return recorder.finish(lambda: problem.numpy_fn(result.x))
