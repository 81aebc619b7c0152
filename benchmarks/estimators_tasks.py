"""The six tasks on which estimators are compared.

A task fixes K and the smoothing distance for all estimators. Only the learning rate is
tuned; the search begins at `rates`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.estimators_rows import Batches, Setting
from benchmarks.problems import attack, digits, learning, pendulum, victims
from benchmarks.problems.synthetic import PROBLEMS
from benchmarks.victim import BOUNDS, trained


class Sampled(NamedTuple):
    """f as an optimizer sees it: with noise, or of a batch.

    Attributes:
      value_fn: `value_fn(x, **drawn) -> scalar`.
      draw: `draw(key) -> drawn`, the same for all evaluations of a step.
    """

    value_fn: Callable[..., jax.Array]
    draw: Callable[[jax.Array], dict[str, Any]]


class Problem(NamedTuple):
    """A function to minimize, and the starts of its runs.

    Attributes:
      value_fn: `value_fn(x, **data) -> scalar`, of a flat vector.
      start: `start(seed) -> (x, data)`: the start of a run, and the data of its f.
      batches: If f is a mean over data.
      sampled: If an optimizer does not see `value_fn` itself.
    """

    value_fn: Callable[..., jax.Array]
    start: Callable[[int], tuple[jax.Array, dict[str, Any]]]
    batches: Batches | None = None
    sampled: Sampled | None = None


class Task(NamedTuple):
    """A problem, and the settings that all runs on it share.

    Attributes:
      label: Label in tables and figures.
      build: `build() -> Problem`; raises ImportError if a package is missing.
      dim, num_directions, smoothing: d, K, and the distance moved along a direction.
      budget: Function values of a run.
      seeds, tuning_seeds: Number of reported runs, and of runs to tune each rate.
      rates: By rule, the learning rate at which the search begins.
      dtype: Of the parameters.
      batched: Whether to evaluate directions in one batch, where that is faster.
      scale: Scale of the f axis in figures.
    """

    label: str
    build: Callable[[], Problem]
    dim: int
    num_directions: int
    smoothing: float
    budget: int
    seeds: int
    tuning_seeds: int
    rates: dict[str, float]
    dtype: str = "float32"
    batched: bool = True
    scale: str = "log"

    @property
    def setting(self) -> Setting:
        chunk_size = self.num_directions if self.batched else 1
        return Setting(self.dim, self.num_directions, self.smoothing, chunk_size)


def start_key(seed: int) -> jax.Array:
    """Return the key of a start; the directions use the other half of its split."""
    return jax.random.split(jax.random.key(seed))[0]


def normal(seed: int, dim: int, scale: float = 1.0) -> jax.Array:
    # Single precision for every task, because double precision draws other starts.
    return scale * jax.random.normal(start_key(seed), (dim,), jnp.float32)


def _synthetic(name: str, dim: int) -> Problem:
    return Problem(PROBLEMS[name].value_fn, lambda seed: (normal(seed, dim), {}))


def _attack() -> Problem:
    """Attack another image with each seed."""
    data = digits.load()
    weights = trained(digits, data, digits.EPOCHS)
    found = victims.predict(digits.log_probs, weights, data.test_images).argmax(axis=1)
    right = np.flatnonzero(found == data.test_labels)
    of_image = attack.objective(digits.log_probs, BOUNDS["digits"])

    def value_fn(x: jax.Array, *, image: jax.Array, target: jax.Array) -> jax.Array:
        theta = x.reshape(image.shape)
        return of_image(theta, weights=weights, image=image, target=target)

    def start(seed: int) -> tuple[jax.Array, dict[str, Any]]:
        index = right[seed % len(right)]
        target = jnp.int32((data.test_labels[index] + 1) % 10)
        image = victims.pixels(data.test_images[index])
        return normal(seed, image.size), {"image": image, "target": target}

    return Problem(value_fn, start)


def _learning(
    loss_fn: Callable[..., jax.Array], first: Callable[[int], jax.Array]
) -> Problem:
    """Build a task of which a tenth of the images is a batch."""
    data = learning.samples()
    num_images = len(data["labels"])

    def value_fn(x: jax.Array, key: jax.Array) -> jax.Array:
        which = jax.random.randint(key, (num_images // 10,), 0, num_images)
        return loss_fn(x, **{name: jnp.asarray(a)[which] for name, a in data.items()})

    def full_value_fn(x: jax.Array) -> jax.Array:
        return loss_fn(x, **jax.tree.map(jnp.asarray, data))

    batches = Batches(value_fn, full_value_fn, 0.1)
    return Problem(loss_fn, lambda seed: (first(seed), data), batches)


def _logistic() -> Problem:
    return _learning(
        learning.cross_entropy, lambda seed: normal(seed, learning.DIM_LINEAR, 0.1)
    )


def _f1() -> Problem:
    return _learning(
        learning.one_minus_f1,
        lambda seed: learning.start_of_network(start_key(seed)),
    )


def _pendulum() -> Problem:
    return Problem(pendulum.cost(), lambda seed: (pendulum.start(start_key(seed)), {}))


def first_rates(normalized: float, plain: float) -> dict[str, float]:
    return {"radazo": normalized / 4, "zo_adamm": normalized, "zo_sgd": plain}


TASKS = {
    "rosenbrock": Task(
        "Rosenbrock, d = 100",
        lambda: _synthetic("rosenbrock", 100),
        *(100, 10, 1e-3, 5_000, 20, 6),
        first_rates(5e-2, 1e-4),
        dtype="float64",
        batched=False,
    ),
    "levy": Task(
        "Levy, d = 10,000",
        lambda: _synthetic("levy", 10_000),
        *(10_000, 10, 5e-2, 11_000, 5, 2),
        first_rates(2e-2, 6e-4),
        batched=False,
    ),
    "attack": Task(
        "attack on digits, d = 64",
        _attack,
        *(64, 2, 4.0, 5_000, 20, 6),
        first_rates(5e-2, 1e-1),
        scale="linear",
    ),
    "logistic": Task(
        "logistic regression, d = 650",
        _logistic,
        *(learning.DIM_LINEAR, 10, 5e-2, 5_000, 5, 2),
        first_rates(5e-2, 3e-1),
    ),
    "f1": Task(
        "1 − F1 of a network, d = 610",
        _f1,
        *(learning.DIM_NETWORK, 10, 1.0, 5_000, 10, 4),
        first_rates(5e-2, 3e-1),
    ),
    "pendulum": Task(
        "pendulum, d = 41",
        _pendulum,
        *(pendulum.DIM, 10, 1.0, 4_000, 10, 3),
        first_rates(1e-1, 1e-1),
        scale="linear",
    ),
}
