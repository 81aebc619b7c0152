"""EvoTorch: PGPE and SNES on a vectorized function.

PGPE is set up as its authors advise for ClipUp: the learning rate of the center is
tuned, the largest speed is twice that, the initial radius 15 times the speed; centred
ranks, symmetric sampling. For SNES the initial standard deviation is tuned; population
and rates are the defaults of the package. A run returns the center of the sampler.
"""

import importlib.metadata
import logging
import warnings

import numpy as np
import torch

from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace

with warnings.catch_warnings():
    # The package compiles a function in a way that PyTorch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    from evotorch import Problem
    from evotorch.algorithms import PGPE, SNES

logging.getLogger("evotorch").setLevel(logging.WARNING)

VERSION = importlib.metadata.version("evotorch")
POPULATION = 20


def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    seen: list[float] = []

    def counted(points: torch.Tensor) -> torch.Tensor:
        values = problem.array_fn(torch, points)
        seen.extend(values.tolist())
        return values

    def center() -> float:
        return problem.array_fn(torch, search.status["center"]).item()

    center_init = torch.tensor(start)
    posed = Problem(
        "min",
        counted,
        solution_length=start.size,
        initial_bounds=(-1.0, 1.0),
        vectorized=True,
        dtype=center_init.dtype,
        seed=seed,
        store_solution_stats=False,
    )
    if algorithm == "PGPE":
        search = PGPE(
            posed,
            popsize=POPULATION,
            center_learning_rate=knob,
            stdev_learning_rate=0.1,
            radius_init=15 * 2 * knob,
            optimizer="clipup",
            optimizer_config={"max_speed": 2 * knob},
            center_init=center_init,
        )
    else:
        search = SNES(posed, stdev_init=knob, center_init=center_init)
    recorder = Recorder(problem.array_fn(torch, center_init).item(), num_values)
    size = 0  # Of a population, known after the first.
    while recorder.taken + size <= num_values:
        search.step()
        size = len(seen)
        recorder.step(seen, center)
        seen.clear()
    return recorder.finish(center)
