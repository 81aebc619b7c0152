"""Execute many runs on one function in one program: methods x learning rates x seeds.

The runs of a seed have the same start and the same directions for every method and rate
(common random numbers). So different draws do not affect their comparison, and each
direction is drawn once for all of them.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

import radazo
from benchmarks.checkpoints import Checkpoint
from benchmarks.methods import METHODS

NUM_CALLS = 20


class Plan(NamedTuple):
    """The runs.

    Attributes:
      value_fn: `value_fn(x)`, as the estimator takes it.
      estimator: A memoryless estimator.
      dim: Number of parameters; the start is drawn from N(0, I).
      dtype: Of the parameters; the start is always drawn in float32.
      rates: Learning rates of each method, (n,) each.
      seeds: (s,) seeds of start and directions.
      steps: Steps of each run.
      cosine: Whether rates decay to 0 along a cosine.
    """

    value_fn: Callable[[jax.Array], jax.Array]
    estimator: radazo.Estimator
    dim: int
    dtype: str
    rates: dict[str, np.ndarray]
    seeds: list[int]
    steps: int
    cosine: bool = False


class Curves(NamedTuple):
    """The results.

    Attributes:
      values: For each method (n, s, steps + 1): f before each step, and at the end.
      run_seconds, compile_seconds: Wall time of all runs, and of compilation.
    """

    values: dict[str, np.ndarray]
    run_seconds: float
    compile_seconds: float


def run(plan: Plan, bar: tqdm, checkpoint: Checkpoint | None = None) -> Curves:
    """Run all runs of a plan; the bar counts steps, common to all.

    The runs resume from `checkpoint`.
    """
    with jax.enable_x64(plan.dtype == "float64"):
        return _run(plan, bar, checkpoint)


def _run(plan: Plan, bar: tqdm, checkpoint: Checkpoint | None) -> Curves:
    rates = {name: jnp.asarray(x, plan.dtype) for name, x in plan.rates.items()}
    size = -(-plan.steps // NUM_CALLS)
    started = time.perf_counter()
    carry = jax.jit(jax.vmap(lambda seed: _start(plan, seed)))(jnp.asarray(plan.seeds))
    advance = jax.jit(lambda *args: _advance(plan, size, *args))
    first, num = jnp.int32(0), jnp.int32(size)
    call = advance.lower(carry, rates, first, num).compile()
    compile_seconds = time.perf_counter() - started
    num_runs = sum(len(x) for x in plan.rates.values())
    curves = np.zeros((0, len(plan.seeds), num_runs), _value_dtype(plan))
    seconds = 0.0
    if checkpoint is not None:
        carry, curves, seconds = checkpoint.restored((carry, curves, seconds))
        bar.update(len(curves))
    while (done := len(curves)) < plan.steps:
        started, num = time.perf_counter(), min(size, plan.steps - done)
        carry, values = call(carry, rates, jnp.int32(done), jnp.int32(num))
        curves = np.concatenate([curves, np.asarray(values)[:num]])
        seconds += time.perf_counter() - started
        bar.update(num)
        if checkpoint is not None:
            checkpoint.keep((carry, curves, seconds))
    last = _values(plan, _joined(plan, carry[1]))
    steps_first = np.concatenate([curves, np.asarray(last)[None]])
    values = np.moveaxis(steps_first, 0, -1).swapaxes(0, 1)  # (runs, seeds, steps + 1)
    ends = np.cumsum([len(x) for x in plan.rates.values()])[:-1]
    by_method = dict(zip(plan.rates, np.split(values, ends), strict=True))
    return Curves(by_method, float(seconds), compile_seconds)


def _start(plan: Plan, seed: jax.Array) -> Any:
    """Return the key of a run, and the points and states of each method and rate."""
    start_key, run_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(start_key, (plan.dim,), jnp.float32).astype(plan.dtype)
    runs = {}
    for name, rates in plan.rates.items():
        points = jnp.tile(x, (len(rates), 1))
        runs[name] = points, jax.vmap(METHODS[name].rule().init)(points)
    return jax.random.key_data(run_key), runs  # Key data, which a file can store.


def _advance(
    plan: Plan,
    size: int,
    carry: Any,
    rates: dict[str, jax.Array],
    first: jax.Array,
    num: jax.Array,
) -> Any:
    """Take `num` steps of all runs from step `first`; return also f before each."""

    def body(i: jax.Array, looped: Any) -> Any:
        (keys, runs), values = looped
        step = jax.vmap(lambda key, one: _step(plan, rates, key, one, first + i))
        runs, seen = step(keys, runs)
        return (keys, runs), values.at[i].set(seen)

    num_runs = sum(len(x) for x in plan.rates.values())
    values = jnp.zeros((size, len(plan.seeds), num_runs), _value_dtype(plan))
    return lax.fori_loop(jnp.int32(0), num, body, (carry, values))


def _step(
    plan: Plan, rates: dict[str, jax.Array], key: jax.Array, runs: Any, t: jax.Array
) -> Any:
    """Take one step of all runs of a seed, as `radazo.with_estimator` would.

    One difference: here moments decay in a step without any finite value.
    """
    value_and_grad = radazo.value_and_grad(plan.value_fn, plan.estimator)
    # The key is not mapped over: directions are drawn once for all runs.
    values, gradients = jax.vmap(value_and_grad, in_axes=(None, 0))(
        jax.random.fold_in(jax.random.wrap_key_data(key), t), _joined(plan, runs)
    )
    schedule = optax.cosine_decay_schedule(1.0, plan.steps)
    decay = schedule(t.astype(plan.dtype)) if plan.cosine else 1.0
    moved, begin = {}, 0
    for name in plan.rates:
        points, state = runs[name]
        part = gradients[begin : begin + len(points)]
        begin += len(points)
        updates, state = jax.vmap(METHODS[name].rule().update)(part, state)
        scale = jnp.asarray(rates[name] * decay, points.dtype)[:, None]
        moved[name] = points - scale * updates, state
    return moved, values


def _joined(plan: Plan, runs: Any) -> jax.Array:
    """Return the (..., runs, dim) points of all methods, in the order of the plan.

    JAX sorts dictionaries by key.
    """
    return jnp.concatenate([runs[name][0] for name in plan.rates], axis=-2)


def _values(plan: Plan, points: jax.Array) -> jax.Array:
    """Return f at points (s, runs, dim); the sum of terms if f returns terms."""
    of_one = jax.vmap(jax.vmap(lambda x: jnp.sum(plan.value_fn(x))))
    return jax.jit(of_one)(points)


def _value_dtype(plan: Plan) -> Any:
    return jnp.float64 if plan.dtype == "float64" else jnp.float32
