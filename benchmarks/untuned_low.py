"""Out of the box: `zo_auto` and calibrated rules on functions of few parameters.

  zo_auto       as it is
  radazo        at the smoothing and rate of one `calibrate` at the start
  zo_adamm_5    five rounds of equal budget, each with its `calibrate` and a new state

The function values of `calibrate` count. If it finds no slope, the run stays where it
is for the rest of the round.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import radazo
from benchmarks import estimators_runs, methods, untuned_runs
from benchmarks.estimators_tasks import Problem

CALIBRATED = {"radazo": ("radazo", 1), "zo_adamm_5": ("zo_adamm", 5)}
NAMES = ("zo_auto", *CALIBRATED)
FIELDS = {"radazo": "learning_rate", "zo_adamm": "learning_rate_zo_adamm"}
NUM_DIRECTIONS, DTYPE = 10, "float32"


def numbers(
    problem: Problem, name: str, budget: int, seeds: list[int]
) -> dict[str, Any]:
    """Return the numbers of the runs of a method."""
    started = time.perf_counter()
    if name == "zo_auto":
        found = _untuned(problem, budget, seeds)
    else:
        found = _calibrated(problem, *CALIBRATED[name], budget, seeds)
    return found | {"run_seconds": time.perf_counter() - started}


def _untuned(problem: Problem, budget: int, seeds: list[int]) -> dict[str, Any]:
    at, given = estimators_runs.marks(budget), jnp.int32(0)
    program = estimators_runs.compile_runs(
        problem,
        lambda _, key: radazo.zo_auto(key=key),
        *(given, DTYPE, at),
        untuned_runs.best_point,
    )
    done = [program.run(seed, given) for seed in seeds]
    found = untuned_runs.measured(done, len(at))
    return found | {"num_values": [run.counts[-1] for run in done]}


def _calibrated(
    problem: Problem, rule: str, rounds: int, budget: int, seeds: list[int]
) -> dict[str, Any]:
    seen_fn = problem.sampled.value_fn if problem.sampled else problem.value_fn
    take_steps, seen = _steps(seen_fn, rule), jax.jit(seen_fn)
    runs, calibrations = [], []
    for seed in seeds:
        x, _ = problem.start(seed)
        values, num_values, found = [float(problem.value_fn(x))], 0, []
        for key in jax.random.split(jax.random.key(seed), rounds):
            share = budget // rounds
            try:
                given = radazo.calibrate(key, seen, x, num_directions=NUM_DIRECTIONS)
            except ValueError as error:
                found.append(str(error).partition("\n")[0])
                num_values += share
            else:
                at = given.smoothing, getattr(given, FIELDS[rule])
                num = max(0, share - given.num_values) // (NUM_DIRECTIONS + 1)
                x = take_steps(x, jax.random.fold_in(key, 1), *at, num)
                num_values += given.num_values + num * (NUM_DIRECTIONS + 1)
                found.append(at)
            values.append(float(problem.value_fn(x)))
        runs.append((values, num_values))
        calibrations.append(found)
    return {
        "value_at_start": [values[0] for values, _ in runs],
        "value_at_end": [values[-1] for values, _ in runs],
        "value_after_rounds": [values for values, _ in runs],
        "num_values": [count for _, count in runs],
        "smoothing_and_rate": calibrations,
    }


def _steps(seen_fn: Callable[..., Any], rule: str) -> Callable[..., jax.Array]:
    """Return the compiled `take_steps(x, key, smoothing, rate, num) -> x`."""

    @jax.jit
    def take_steps(x: Any, key: Any, smoothing: Any, rate: Any, num: Any) -> jax.Array:
        estimator = radazo.sphere_estimator(
            num_directions=NUM_DIRECTIONS, smoothing=smoothing
        )
        optimizer = methods.optimizer(methods.METHODS[rule], rate, estimator, key)

        def step(_: Any, carry: Any) -> Any:
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=seen_fn)
            return optax.apply_updates(x, updates), state

        return lax.fori_loop(jnp.int32(0), num, step, (x, optimizer.init(x)))[0]

    return lambda x, key, smoothing, rate, num: take_steps(
        x, key, np.float32(smoothing), np.float32(rate), np.int32(num)
    )
