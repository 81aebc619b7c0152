"""The four synthetic functions of the R-AdaZO paper, of a vector of any dimension.

  quadratic    ½ Σ xᵢ²                                                  min 0 at x = 0
  cubic        Σ (|xᵢ|³ / 3 + xᵢ² / 2)                                  min 0 at x = 0
  levy         sin²(π w₁) + Σ_{i<d} (wᵢ − 1)² (1 + 10 sin²(π wᵢ + 1))
               + (w_d − 1)² (1 + sin²(2π w_d)),  w = 1 + (x − 1) / 4    min 0 at x = 1
  rosenbrock   Σ_{i<d} (100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²)                  min 0 at x = 1

None is divided by d. The formula of Cubic is not in the sources that survive of the
paper; this one is a choice of ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Problem(NamedTuple):
    """A function whose minimum is 0, at the vector with every element `minimizer`."""

    value_fn: Callable[[jax.Array], jax.Array]
    minimizer: float


def quadratic(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x)) / 2


def cubic(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(x) ** 3 / 3 + jnp.square(x) / 2)


def levy(x: jax.Array) -> jax.Array:
    w = 1 + (x - 1) / 4
    inner, last = w[:-1], w[-1]
    waves = 1 + 10 * jnp.square(jnp.sin(jnp.pi * inner + 1))
    return (
        jnp.square(jnp.sin(jnp.pi * w[0]))
        + jnp.sum(jnp.square(inner - 1) * waves)
        + jnp.square(last - 1) * (1 + jnp.square(jnp.sin(2 * jnp.pi * last)))
    )


def rosenbrock(x: jax.Array) -> jax.Array:
    here, after = x[:-1], x[1:]
    valley = jnp.square(after - jnp.square(here))
    return jnp.sum(100 * valley + jnp.square(1 - here))


PROBLEMS = {
    "quadratic": Problem(quadratic, 0.0),
    "cubic": Problem(cubic, 0.0),
    "levy": Problem(levy, 1.0),
    "rosenbrock": Problem(rosenbrock, 1.0),
}
