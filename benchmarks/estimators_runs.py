"""Runs that end at a number of function values, not of steps.

The cost of a step depends on the estimator, and for some on the step; the state counts
function values. Each task has fixed counts at which f is recorded, at the first point
reached after so many values; these evaluations do not count.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import radazo
from benchmarks.estimators_tasks import Problem
from benchmarks.methods import METHODS

RULES = ("radazo", "zo_adamm", "zo_sgd")
NUM_MARKS = 40


class Run(NamedTuple):
    """One run.

    Attributes:
      values: (marks + 1,) f at the start and at each mark. A run stops at a value that
        is not finite, or is more than ten times the start above it.
      counts: (marks + 1,) function values used by then.
    """

    values: np.ndarray
    counts: np.ndarray


class Program(NamedTuple):
    """The compiled run of one estimator on one problem.

    Attributes:
      run: `run(rule, seed, rate) -> Run`, or as `compile_runs` says.
      compile_seconds: Wall time.
    """

    run: Callable[..., Run]
    compile_seconds: float


def marks(budget: int) -> np.ndarray:
    """Return the marks: denser near the start; the last is the budget."""
    parts = np.arange(1, NUM_MARKS + 1) / NUM_MARKS
    return np.unique(np.ceil(parts**2 * budget).astype(np.int32))


def program(
    problem: Problem, estimator: radazo.Estimator, dtype: str, budget: int
) -> Program:
    """Compile once for all rules, seeds and rates."""

    def optimizer(given: Any, key: jax.Array) -> Any:
        chosen, rate = given
        rule = optax.chain(one_of(chosen), optax.scale_by_learning_rate(rate))
        return radazo.with_estimator(estimator, rule, key)

    def given(rule: str, rate: float) -> Any:
        return jnp.int32(RULES.index(rule)), jnp.asarray(rate, dtype)

    with jax.enable_x64(dtype == "float64"):
        first = given(RULES[0], 0.0)
    compiled = compile_runs(problem, optimizer, first, dtype, marks(budget))

    def called(rule: str, seed: int, rate: float) -> Run:
        with jax.enable_x64(dtype == "float64"):
            chosen = given(rule, rate)
        return compiled.run(seed, chosen)

    return compiled._replace(run=called)


def compile_runs(
    problem: Problem,
    optimizer: Callable[[Any, jax.Array], Any],
    given: Any,
    dtype: str,
    at: np.ndarray,
    point: Callable[[Any, Any], Any] = lambda x, state: x,
) -> Program:
    """Compile the run of an optimizer: a `Program` with `run(seed, given) -> Run`.

    Args:
      problem, dtype: As in `Task`.
      optimizer: `optimizer(given, key)`, a complete optimizer.
      given: What differs between runs, for instance a learning rate.
      at: Counts of function values at which to record f; the run ends at the last.
      point: `point(x, state)`, where to record f.
    """
    counts = jnp.asarray(at)

    def run(x: Any, data: Any, seed: Any, given: Any) -> Any:
        key = jax.random.key(seed)
        made = optimizer(given, jax.random.split(key)[1])
        keys = jax.random.fold_in(key, 1)
        return _curve(problem, made, x, data, counts, keys, point)

    def arguments(seed: int, given: Any) -> tuple[Any, ...]:
        x, data = problem.start(seed)
        x, data = x.astype(dtype), jax.tree.map(jnp.asarray, data)
        return x, data, jnp.int32(seed), given

    def called(seed: int, given: Any) -> Run:
        with jax.enable_x64(dtype == "float64"):
            return Run(*map(np.asarray, compiled(*arguments(seed, given))))

    started = time.perf_counter()
    with jax.enable_x64(dtype == "float64"):
        compiled = jax.jit(run).lower(*arguments(0, given)).compile()
    return Program(called, time.perf_counter() - started)


def one_of(chosen: jax.Array) -> optax.GradientTransformation:
    """Return the rule of this index of `RULES`, so that one program runs them all."""
    rules = [METHODS[name].rule() for name in RULES]

    def init(params: Any) -> Any:
        return tuple(rule.init(params) for rule in rules)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def branch(i: int) -> Any:
            out, new = rules[i].update(updates, state[i], params)
            return out, (*state[:i], new, *state[i + 1 :])

        branches = [lambda i=i: branch(i) for i in range(len(rules))]
        return lax.switch(chosen, branches)

    return optax.GradientTransformation(init, update)


def _curve(
    problem: Problem,
    optimizer: Any,
    x: Any,
    data: Any,
    at: jax.Array,
    key: jax.Array,
    point: Callable[[Any, Any], Any],
) -> Any:
    """Return f at the start and at each mark, and the function values used by then."""
    value_fn, sampled = problem.value_fn, problem.sampled
    seen_fn = value_fn if sampled is None else sampled.value_fn

    def step(carry: Any) -> Any:
        x, state = carry
        drawn = data
        if sampled is not None:
            drawn = sampled.draw(jax.random.fold_in(key, state.count))
        updates, state = optimizer.update(None, state, x, value_fn=seen_fn, **drawn)
        return optax.apply_updates(x, updates), state

    def advance(carry: Any, mark: jax.Array) -> Any:
        run, sound = carry

        def unfinished(run: Any) -> Any:
            state = run[1]
            # Count at least one value a step, so that the loop ends.
            return sound & (state.num_values < mark) & (state.count < mark)

        run = lax.while_loop(unfinished, step, run)
        value = value_fn(point(*run), **data)
        sound = sound & (value <= first + 10 * jnp.abs(first))
        return (run, sound), (value, run[1].num_values)

    first, run = value_fn(x, **data), (x, optimizer.init(x))
    _, (values, counts) = lax.scan(advance, (run, jnp.isfinite(first)), at)
    return jnp.append(first, values), jnp.append(jnp.int32(0), counts)
