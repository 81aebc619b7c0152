"""How much the constants of `zo_auto` matter: each halved and doubled.

Of a decay or a share c it is 1 − c that is halved and doubled, and of a factor its
logarithm. Constants are arguments of the compiled run, so that a task is compiled once
for all of them, but for those that set the length of a loop.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optax
from tqdm import tqdm

import radazo
from benchmarks import estimators_runs, records
from benchmarks.estimators_tasks import Problem
from benchmarks.untuned_runs import best_point
from benchmarks.untuned_tasks import LOW, LOW_BUDGET, LOW_DIM, TASKS

# By module of `radazo.optimizers`.
ITSELF = {
    "zo_auto": (
        *("_NOISY_STEPS", "_OUTLIER", "_TOLERANCE", "_LOUD", "_PRIOR", "_RISE"),
        *("_WIDE_SMOOTHING", "_WINDOW_SWEEPS", "_WINDOW_STEPS", "_LEAST_SIGNAL"),
        *("_STALLED", "_WIDE_STALLED", "_OF_NORM", "_OF_PATH", "_JUMP"),
    ),
    "parabola": ("FIRST_STEPS", "LEAST_CURVATURE", "MOST_CURVATURE"),
}
FROM_ONE = {"zo_auto": ("_DECAYS", "_NOISE_DECAY", "_WEAK"), "parabola": ("IS_LINEAR",)}
FACTOR = {
    "zo_auto": ("_NOISY_CHANGE", "_WINDOW_GROWTH"),
    "parabola": ("FIRST_GROWTH", "LINEAR_GROWTH", "GROWTH", "FALL", "BACK"),
}
FIXED = ("_WINDOW_SWEEPS", "_WINDOW_STEPS")  # Set the length of a loop.
NAMES = (
    *("quadratic_1000", "rosenbrock_1000", "rastrigin_1000"),
    *("rotated_rastrigin", "ackley", "step", "noise_1", "logistic_batches"),
)
TIMES = (0.5, 2.0)
SEEDS = (456, 457, 458)


def of_all(of: Callable[[float], float], value: Any) -> Any:
    """Apply a function to a number, or to each of several."""
    return tuple(map(of, value)) if isinstance(value, tuple) else of(value)


CHANGES: tuple[tuple[dict[str, tuple[str, ...]], Callable[[float, float], float]], ...]
CHANGES = (
    (ITSELF, lambda value, times: value * times),
    (FROM_ONE, lambda value, times: 1 - (1 - value) * times),
    (FACTOR, lambda value, times: value**times),
)


def module_of(name: str) -> Any:
    return importlib.import_module(f"radazo.optimizers.{name}")


def modules() -> dict[str, str]:
    """Return the module of each constant."""
    return {
        name: module
        for names, _ in CHANGES
        for module, found in names.items()
        for name in found
    }


def constants() -> dict[str, Any]:
    """Return the constants by name: numbers, or tuples of numbers."""
    return {name: getattr(module_of(x), name) for name, x in modules().items()}


def changed(name: str, value: Any, times: float) -> Any:
    """Return a constant that is halved or doubled."""
    (change,) = (
        of for names, of in CHANGES if any(name in found for found in names.values())
    )
    new = of_all(lambda one: change(one, times), value)
    return max(1, round(new)) if isinstance(value, int) else new


def lines(budget: float, path: Path, bar: tqdm) -> Iterator[dict[str, Any]]:
    """Yield the line of each task, stored or new."""
    for name in NAMES:
        given = settings(name, budget)
        line = records.find(records.read(path), list(SEEDS), given)
        if line is None:
            bar.set_description(f"{name}, sensitivity")
            found = numbers(name, given)
            line = records.append(path, "untuned", list(SEEDS), given, found)
            bar.write(f"{name}, sensitivity: finished")
        yield line


def settings(name: str, budget: float) -> dict[str, Any]:
    given = {"task": name, "estimator": "", "rule": "sensitivity"}
    if name in LOW:
        given |= {"dim": LOW_DIM, "dtype": "float32", "budget": LOW_BUDGET}
    else:
        task = TASKS[name]
        given |= {"dim": task.dim, "dtype": task.dtype, "budget": task.budget}
    given["budget"] = max(1, round(budget * given["budget"]))
    return given | {"constants": constants(), "times": TIMES}


def numbers(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return final f with the constants as they are, and with each one changed."""
    problem = (LOW if name in LOW else TASKS)[name].build()
    run = program(problem, given)
    found = [
        {"constant": constant, "times": times, "value_at_end": run(constant, times)}
        for constant in given["constants"]
        for times in TIMES
    ]
    starts = [problem.start(seed) for seed in SEEDS]
    return {
        "value_at_start": [float(problem.value_fn(x, **data)) for x, data in starts],
        "value_at_end": run(None, 1.0),
        "changed": found,
    }


def program(problem: Problem, given: dict[str, Any]) -> Any:
    """Return `run(constant, times) -> values at the end`."""
    known, at = given["constants"], np.array([given["budget"]])
    free = {name: value for name, value in known.items() if name not in FIXED}

    def compiled(fixed: dict[str, Any]) -> Any:
        def optimizer(values: dict[str, Any], key: Any) -> Any:
            return overridden({**values, **fixed}, key)

        shared = free, given["dtype"], at, best_point
        made = estimators_runs.compile_runs(problem, optimizer, *shared)
        return lambda values: [made.run(seed, values).values[-1] for seed in SEEDS]

    usual = compiled({})

    def run(constant: str | None, times: float) -> list[float]:
        if constant is None:
            return usual(free)
        value = changed(constant, known[constant], times)
        if constant in FIXED:
            return compiled({constant: value})(free)
        return usual({**free, constant: value})

    return run


def overridden(values: dict[str, Any], key: Any) -> Any:
    """Return `zo_auto` with these constants, also where it is traced."""
    found = [(module_of(modules()[name]), name, x) for name, x in values.items()]

    @contextlib.contextmanager
    def set_constants() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for given in found:
                stack.enter_context(mock.patch.object(*given))
            yield

    with set_constants():
        made = radazo.zo_auto(key=key)

    def init(params: Any) -> Any:
        with set_constants():
            return made.init(params)

    def update(updates: Any, state: Any, params: Any = None, **given: Any) -> Any:
        with set_constants():
            return made.update(updates, state, params, **given)

    return optax.GradientTransformationExtraArgs(init, update)
