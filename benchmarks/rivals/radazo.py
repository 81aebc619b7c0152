"""radazo: its optimizers in one compiled loop, as `radazo.minimize` compiles it.

Only the learning rate is tuned. A step takes K = 10 forward differences (11 values), or
with `central` K = 5 (10 values); smoothing is 5e-3 along a direction of the unit
sphere, or its equal of 5e-3 / √d with Rademacher directions; b1 and b2 are those of the
paper. The run returns its last parameters. The rate is an argument of the program, so
that tuning compiles once.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import radazo
from benchmarks import methods
from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace, chunks

VERSION = radazo.__version__
NUM_DIRECTIONS, SMOOTHING = 10, 5e-3


def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    with jax.enable_x64(start.dtype == np.float64):
        x = jnp.asarray(start)
        per_step = values_per_step(algorithm)
        num_steps = num_values // per_step
        program, compile_seconds = _compiled(
            problem.value_fn, algorithm, x.size, x.dtype.name
        )
        begin, advance = program
        state, rate = begin(x, seed), jnp.asarray(knob)
        value = float(problem.value_fn(x))
        jax.block_until_ready(state)
        recorder = Recorder(value, num_values)
        for num in chunks(num_steps):
            x, state, value, lowest = advance(x, state, rate, jnp.int32(num))
            recorder.chunk(num * per_step, lowest, value)
        return recorder.finish(lambda: value, compile_seconds)


def optimizer(algorithm: str, dim: int, rate: Any, key: Any) -> Any:
    name, _, variant = algorithm.partition(" ")
    if variant == "Rademacher":
        estimator = radazo.rademacher_estimator(
            num_directions=NUM_DIRECTIONS, smoothing=SMOOTHING / dim**0.5
        )
    elif variant == "central":
        estimator = radazo.sphere_estimator(
            num_directions=NUM_DIRECTIONS // 2,
            smoothing=SMOOTHING,
            difference=radazo.central,
        )
    else:
        estimator = radazo.sphere_estimator(
            num_directions=NUM_DIRECTIONS, smoothing=SMOOTHING
        )
    return methods.optimizer(methods.METHODS[name], rate, estimator, key)


def values_per_step(algorithm: str) -> int:
    return NUM_DIRECTIONS + (0 if algorithm.endswith("central") else 1)


@functools.cache
def _compiled(
    value_fn: Callable, algorithm: str, dim: int, dtype: str
) -> tuple[Any, float]:
    @jax.jit
    def begin(x: jax.Array, seed: jax.Array) -> Any:
        schedule = optax.constant_schedule(1.0)  # The same state as below.
        return optimizer(algorithm, dim, schedule, jax.random.key(seed)).init(x)

    def advance(x: jax.Array, state: Any, rate: jax.Array, num: jax.Array) -> Any:
        rule = optimizer(algorithm, dim, lambda _: rate, 0)  # The key is in the state.

        def step(_: jax.Array, carry: Any) -> Any:
            x, state, lowest = carry
            updates, state = rule.update(None, state, x, value_fn=value_fn)
            x = optax.apply_updates(x, updates)
            return x, state, jnp.fmin(lowest, state.last_value)

        infinity = jnp.asarray(jnp.inf, x.dtype)
        x, state, lowest = lax.fori_loop(jnp.int32(0), num, step, (x, state, infinity))
        return x, state, value_fn(x), lowest

    started = time.perf_counter()
    x = jnp.zeros(dim, dtype)
    state, num = begin(x, 0), jnp.int32(1)
    steps = jax.jit(advance).lower(x, state, jnp.asarray(1.0), num).compile()
    return (begin, steps), time.perf_counter() - started
