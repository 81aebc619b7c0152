"""The tasks on which `zo_auto` is compared with tuned rules.

Noise is drawn on the host, by a generator that a run starts with its seed: each
evaluation has its own, also a second one at the same point. A batch is drawn for each
step and used by all of its evaluations.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from benchmarks import estimators_tasks
from benchmarks.estimators_tasks import (
    Problem,
    Sampled,
    Task,
    first_rates,
    normal,
    start_key,
)
from benchmarks.problems import classics
from benchmarks.problems.synthetic import PROBLEMS

# By function, first rates of normalized rules and of ZO-SGD at d = 10,000.
FIRST_RATES = {
    "quadratic": (9e-3, 1e-3),
    "cubic": (9e-3, 6e-4),
    "levy": (1.3e-2, 6e-4),
    "rosenbrock": (1e-2, 1e-6),
    "ackley": (3e-3, 0.15),
    "rastrigin": (3e-3, 3e-6),
}
BUDGETS = {100: 55_000, 1_000: 5_500, 10_000: 55_000}
DEVIATIONS = (0.1, 1.0, 10.0)
LOW_DIM, LOW_BUDGET, LOW_SEEDS = 40, 20_000, 3


class Noise:
    """Standard normal numbers of the host, a new one for each evaluation."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def restart(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def draw(self, like: jax.Array) -> jax.Array:
        # Single precision: the thread of a callback does not know `enable_x64`.
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return io_callback(self._next, shape).astype(like.dtype)

    def _next(self) -> np.ndarray:
        return np.asarray(self.generator.standard_normal(), np.float32)


Start = Callable[[int], jax.Array]
Function = Callable[[jax.Array], jax.Array]


def _plain(value_fn: Function, start: Start) -> Problem:
    return Problem(value_fn, lambda seed: (start(seed), {}))


def _noisy(
    value_fn: Function, start: Start, added: float = 0.0, relative: float = 0.0
) -> Problem:
    """Build f · (1 + relative · n) + added · n', of which the report sees f."""
    noise = Noise()

    def started(seed: int) -> tuple[jax.Array, dict]:
        noise.restart(seed)
        return start(seed), {}

    def seen(x: jax.Array) -> jax.Array:
        value = value_fn(x)
        return value + (added + relative * value) * noise.draw(value)

    return Problem(value_fn, started, sampled=Sampled(seen, lambda _: {}))


def _batches() -> Problem:
    """Build logistic regression on batches of a tenth of the images."""
    problem = estimators_tasks.TASKS["logistic"].build()
    sampled = Sampled(problem.batches.value_fn, lambda key: {"key": key})
    return problem._replace(batches=None, sampled=sampled)


def _vector(label: str, value_fn: Function, dim: int, rates: tuple) -> Task:
    """Return a task that starts from N(0, I), in float64."""
    return Task(
        f"{label}, d = {dim:,}",
        lambda: _plain(value_fn, functools.partial(normal, dim=dim)),
        *(dim, 10, 5e-3, BUDGETS[dim], 5, 2),
        first_rates(*rates),
        dtype="float64",
        batched=False,
    )


def _synthetic(name: str, dim: int) -> Task:
    normalized, plain = FIRST_RATES[name]
    rates = normalized * (10_000 / dim) ** 0.5, plain * 10_000 / dim
    return _vector(name.capitalize(), PROBLEMS[name].value_fn, dim, rates)


def _with_noise(deviation: float) -> Task:
    """Return Quadratic with noise; the distance has the least error of a difference.

    That is of (√2 deviation / distance)² + (distance / 2)².
    """
    start = functools.partial(normal, dim=1000)
    value_fn = PROBLEMS["quadratic"].value_fn
    return _synthetic("quadratic", 1000)._replace(
        label=f"Quadratic, d = 1,000, noise of {deviation:g}",
        build=lambda: _noisy(value_fn, start, deviation),
        smoothing=round((8 * deviation**2) ** 0.25, 2),
    )


GROUPS = {
    "synthetic": {
        f"{name}_{dim}": _synthetic(name, dim) for dim in BUDGETS for name in PROBLEMS
    },
    "estimators": estimators_tasks.TASKS,
    "quadratics": {
        "ill_conditioned": _vector(
            "Quadratic of condition 10⁴", classics.ill_conditioned, 1000, (3e-2, 1e-3)
        ),
        "sparse": _vector(
            "Quadratic, one steep coordinate in 20", classics.sparse, 1000, (3e-2, 1e-3)
        ),
    },
    "noise": {f"noise_{x:g}": _with_noise(x) for x in DEVIATIONS},
    "batches": {
        "logistic_batches": estimators_tasks.TASKS["logistic"]._replace(
            label="logistic regression, d = 650, batches of 10 %", build=_batches
        )
    },
}
TASKS = {name: task for tasks in GROUPS.values() for name, task in tasks.items()}


class LowTask(NamedTuple):
    """A function of few parameters, whose starts are uniform in [−4, 4].

    Attributes:
      label: Label in tables.
      function: Name of the function in `classics`.
      added, relative: Standard deviation of the noise, and as a share of f.
    """

    label: str
    function: str
    added: float = 0.0
    relative: float = 0.0

    def build(self, dim: int = LOW_DIM) -> Problem:
        def start(seed: int) -> jax.Array:
            shape, ends = (dim,), {"minval": -4.0, "maxval": 4.0}
            return jax.random.uniform(start_key(seed), shape, jnp.float32, **ends)

        value_fn = classics.functions(dim)[self.function]
        if self.added or self.relative:
            return _noisy(value_fn, start, self.added, self.relative)
        return _plain(value_fn, start)


LOW = {
    "ackley": LowTask("Ackley", "ackley"),
    "griewank": LowTask("Griewank", "griewank"),
    "zakharov": LowTask("Zakharov", "zakharov"),
    "styblinski_tang": LowTask("Styblinski-Tang", "styblinski_tang"),
    "ellipsoid": LowTask("rotated quadratic of condition 10⁶", "ellipsoid"),
    "rotated_rastrigin": LowTask("rotated Rastrigin", "rotated_rastrigin"),
    "step": LowTask("step", "step"),
    "plateau": LowTask("plateau", "plateau"),
    "low_rosenbrock": LowTask("Rosenbrock", "rosenbrock"),
    "sphere_added": LowTask("sphere + N(0, 1)", "sphere", added=1.0),
    "sphere_relative": LowTask("sphere, 10 % noise", "sphere", relative=0.1),
    "rosenbrock_relative": LowTask("Rosenbrock, 10 % noise", "rosenbrock", 0.0, 0.1),
}
