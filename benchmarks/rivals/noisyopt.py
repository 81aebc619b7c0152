"""noisyopt: `minimizeSPSA`, one pair of values a step along a Rademacher direction.

The gain `a` of the steps is tuned. Its rules of decay are the package's. The distance
of the pair starts at c = 0.01 and not at the default of 1: these functions have no
noise, for which Spall's advice is a small one. The run returns its last parameters.
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

    start = start.astype(np.float64)  # The package knows no other type.

    seen: list[float] = []

    def counted(x: np.ndarray) -> float:
        seen.append(problem.numpy_fn(x))
        return seen[-1]

    def after_step(x: np.ndarray) -> None:
        recorder.step(seen, lambda: problem.numpy_fn(x))
        seen.clear()

    # A rate that is too large overflows, which is an answer and no accident.
    with np.errstate(all="ignore"):
        recorder = Recorder(problem.numpy_fn(start), num_values)
        np.random.seed(seed)  # The package draws from the global generator.
        result = minimizeSPSA(
            counted,
            start.copy(),  # It is changed in place.
            niter=(num_values - 1) // 2,  # One value more is taken at the end.
            paired=False,
            a=knob,
            c=DISTANCE,
            callback=after_step,
        )
        recorder.step(seen, lambda: problem.numpy_fn(result.x))
        return recorder.finish(lambda: problem.numpy_fn(result.x))
