"""nevergrad: OnePlusOne and SPSA, one value at a time.

The scale of the mutation is tuned (`set_mutation(sigma=...)`). SPSA does not use it;
instead its gain `a`, 1e-5 by default, is tuned. A run returns the recommendation of the
package. NGOpt, which chooses among its optimizers, is left out: for 10,000 parameters
it chooses OnePlusOne with a model, and the model fails with NumPy 2.4.
"""

import importlib.metadata
import warnings

import nevergrad
import numpy as np

from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace

VERSION = importlib.metadata.version("nevergrad")


def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    start = start.astype(np.float64)  # The package supports no other dtype.

    def recommended() -> float:
        return problem.numpy_fn(optimizer.provide_recommendation().value)

    with (
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        # It warns of non-finite values and of small budgets.
        warnings.simplefilter("ignore")
        parameter = nevergrad.p.Array(init=start.copy())
        if algorithm != "SPSA":
            parameter.set_mutation(sigma=knob)
        parameter.random_state.seed(seed)
        make = nevergrad.optimizers.registry[algorithm]
        optimizer = make(parametrization=parameter, budget=num_values, num_workers=1)
        if algorithm == "SPSA":
            optimizer.a = knob
        recorder = Recorder(problem.numpy_fn(start), num_values)
        for _ in range(num_values):
            candidate = optimizer.ask()
            value = problem.numpy_fn(candidate.value)
            optimizer.tell(candidate, value)
            recorder.step([value], recommended)
        return recorder.finish(recommended)
