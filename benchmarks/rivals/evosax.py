"""evosax: Open_ES, PGPE, SNES, Sep_CMA_ES and CMA_ES, with compiled generations.

Open_ES uses centred ranks, antithetic samples of standard deviation 0.05 and Adam,
whose learning rate is tuned. PGPE is set up as for EvoTorch: ClipUp with a tuned
learning rate, twice that as largest speed, and an initial radius of 15 times the speed.
For the others the initial standard deviation is tuned, and the rest is the default of
the package, with a population of 4 + 3 ln d. The populations of Open_ES and PGPE are
the best of 10, 20, 50 and 100 on Quadratic and Rosenbrock. A run returns the mean.
"""

import functools
import importlib.metadata
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax import algorithms
from evosax.core.optimizer import clipup
from jax import lax

from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace, chunks

VERSION = importlib.metadata.version("evosax")
POPULATION = {"Open_ES": 50, "PGPE": 20}
STD = 0.05


def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    with jax.enable_x64(start.dtype == np.float64), warnings.catch_warnings():
        # Its ClipUp calls an optax function by a deprecated name.
        warnings.simplefilter("ignore", DeprecationWarning)
        mean, size = jnp.asarray(start), population(algorithm, start.size)
        program, compile_seconds = _compiled(
            problem.value_fn, algorithm, start.size, start.dtype.name
        )
        begin, advance = program
        key, knob = jax.random.key(seed), jnp.asarray(knob)
        state, value = begin(key, mean, knob), float(problem.value_fn(mean))
        jax.block_until_ready(state)
        recorder = Recorder(value, num_values)
        for num in chunks(num_values // size):
            key, state, lowest, value = advance(key, state, knob, jnp.int32(num))
            recorder.chunk(num * size, lowest, value)
        return recorder.finish(lambda: value, compile_seconds)


def population(algorithm: str, dim: int) -> int:
    return POPULATION.get(algorithm, 4 + math.floor(3 * math.log(dim)))


def strategy(algorithm: str, dim: int, knob: jax.Array) -> tuple[Any, Any]:
    """Return the algorithm with `knob`, and its parameters."""
    make = functools.partial(
        getattr(algorithms, algorithm), population(algorithm, dim), jnp.zeros(dim)
    )
    if algorithm == "Open_ES":
        schedule = optax.constant_schedule(STD)
        made = make(optimizer=optax.adam(knob), std_schedule=schedule)
        return made, made.default_params
    if algorithm == "PGPE":
        made = make(optimizer=clipup(knob, max_velocity=2 * knob))
        std = 15 * 2 * knob / dim**0.5
        return made, made.default_params.replace(std_init=std)
    made = make()
    return made, made.default_params.replace(std_init=knob)


@functools.cache
def _compiled(
    value_fn: Callable, algorithm: str, dim: int, dtype: str
) -> tuple[Any, float]:
    @jax.jit
    def begin(key: jax.Array, mean: jax.Array, knob: jax.Array) -> Any:
        made, params = strategy(algorithm, dim, knob)
        return made.init(key, mean, params)

    def advance(key: jax.Array, state: Any, knob: jax.Array, num: jax.Array) -> Any:
        made, params = strategy(algorithm, dim, knob)

        def step(_: jax.Array, carry: Any) -> Any:
            key, state, lowest = carry
            key, ask_key, tell_key = jax.random.split(key, 3)
            points, state = made.ask(ask_key, state, params)
            values = jax.vmap(value_fn)(points)
            state, _ = made.tell(tell_key, points, values, state, params)
            return key, state, jnp.fmin(lowest, jnp.nanmin(values))

        carry = key, state, jnp.asarray(jnp.inf)
        key, state, lowest = lax.fori_loop(jnp.int32(0), num, step, carry)
        return key, state, lowest, value_fn(made.get_mean(state))

    started = time.perf_counter()
    key, knob, num = jax.random.key(0), jnp.asarray(1.0), jnp.int32(1)
    state = begin(key, jnp.zeros(dim, dtype), knob)
    steps = jax.jit(advance).lower(key, state, knob, num).compile()
    return (begin, steps), time.perf_counter() - started
