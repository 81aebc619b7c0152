"""pycma: CMA-ES, and separable CMA-ES for many parameters.

The initial step size is tuned; everything else, including the population size, is the
default of the package. A run continues after the package would stop it for lack of
progress, so that it uses the whole budget. It returns the mean (`xfavorite`).
"""

import importlib.metadata

import cma
import numpy as np

from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace

VERSION = importlib.metadata.version("cma")


def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    start = start.astype(np.float64)  # The package supports no other dtype.

    options = {"seed": seed, "verbose": -9, "CMA_diagonal": algorithm == "sep-CMA"}
    with np.errstate(all="ignore"):
        recorder = Recorder(problem.numpy_fn(start), num_values)
        strategy = cma.CMAEvolutionStrategy(start, knob, options)
        while recorder.taken + strategy.popsize <= num_values:
            points = strategy.ask()
            values = [problem.numpy_fn(x) for x in points]
            strategy.tell(points, values)
            recorder.step(values, lambda: problem.numpy_fn(strategy.mean))
        return recorder.finish(lambda: problem.numpy_fn(strategy.mean))
