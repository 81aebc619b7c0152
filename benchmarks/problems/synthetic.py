"""Synthetic functions of a vector of any dimension.

Functions of the R-AdaZO paper:

  quadratic    Σ ½ xᵢ²                                                  min 0 at x = 0
  cubic        Σ (|xᵢ|³ / 3 + xᵢ² / 2)                                  min 0 at x = 0
  levy         sin²(π w₁) + Σ_{i<d} (wᵢ − 1)² (1 + 10 sin²(π wᵢ + 1))
               + (w_d − 1)² (1 + sin²(2π w_d)),  w = 1 + (x − 1) / 4    min 0 at x = 1
  rosenbrock   Σ_{i<d} (100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²)                  min 0 at x = 1

Further functions, with many local minima, as a check against tuning to those four:

  ackley       20 (1 − exp(−0.2 √mean xᵢ²)) + e − exp(mean cos 2π xᵢ)   min 0 at x = 0
  rastrigin    Σ (xᵢ² + 10 (1 − cos 2π xᵢ))                             min 0 at x = 0

Only Ackley, a function of means, is divided by d. The available sources of the paper do
not give the formula of Cubic; this one is a choice.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Problem(NamedTuple):
    """A function whose minimum is 0, at the vector with every element `minimizer`.

    Attributes:
      value_fn: `value_fn(x) -> scalar`.
      minimizer: Each element of the minimizer.
      terms_fn: `terms_fn(x) -> (n,)`, terms whose sum is the value; None if it is not
        a sum.
    """

    value_fn: Callable[[jax.Array], jax.Array]
    minimizer: float
    terms_fn: Callable[[jax.Array], jax.Array] | None


def sin_squared(x: jax.Array) -> jax.Array:
    """Return sin² πx, to the last two digits of float64.

    It is a polynomial, which a processor evaluates on several elements at once. On CPU,
    XLA calls the C library for each sine, which is several times slower.
    """
    z = jnp.pi * (x - jnp.floor(x + 0.5))  # In [−π/2, π/2]: 11 terms suffice.
    square, series = jnp.square(z), jnp.zeros_like(z)
    for n in range(21, 0, -2):
        series = series * square + (-1) ** (n // 2) / math.factorial(n)
    return square * jnp.square(series)


def quadratic(x: jax.Array) -> jax.Array:
    return jnp.square(x) / 2


def cubic(x: jax.Array) -> jax.Array:
    return jnp.abs(x) ** 3 / 3 + jnp.square(x) / 2


def levy(x: jax.Array) -> jax.Array:
    w = 1 + (x - 1) / 4
    inner, last = w[:-1], w[-1:]
    waves = 1 + 10 * sin_squared(inner + 1 / jnp.pi)
    return jnp.concatenate(
        [
            sin_squared(w[:1]),
            jnp.square(inner - 1) * waves,
            jnp.square(last - 1) * (1 + sin_squared(2 * last)),
        ]
    )


def rosenbrock(x: jax.Array) -> jax.Array:
    here, after = x[:-1], x[1:]
    return 100 * jnp.square(after - jnp.square(here)) + jnp.square(1 - here)


def rastrigin(x: jax.Array) -> jax.Array:
    return jnp.square(x) + 20 * sin_squared(x)


def ackley(x: jax.Array) -> jax.Array:
    distance = jnp.sqrt(jnp.mean(jnp.square(x)))
    waves = 1 - 2 * jnp.mean(sin_squared(x))
    return 20 * (1 - jnp.exp(-0.2 * distance)) + jnp.e - jnp.exp(waves)


def _sum_of(terms_fn: Callable[[jax.Array], jax.Array], minimizer: float) -> Problem:
    return Problem(lambda x: jnp.sum(terms_fn(x)), minimizer, terms_fn)


PROBLEMS = {
    "quadratic": _sum_of(quadratic, 0.0),
    "cubic": _sum_of(cubic, 0.0),
    "levy": _sum_of(levy, 1.0),
    "rosenbrock": _sum_of(rosenbrock, 1.0),
    "ackley": Problem(ackley, 0.0, None),
    "rastrigin": _sum_of(rastrigin, 0.0),
}
OF_THE_PAPER = ("quadratic", "cubic", "levy", "rosenbrock")
