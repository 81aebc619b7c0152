"""The synthetic functions for any array library, such as NumPy or PyTorch.

`array_fn(np, x)` equals `PROBLEMS[name].value_fn(x)` up to rounding. Leading axes are
batch axes. Sines are those of the library, which already evaluates several elements at
once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.problems.synthetic import PROBLEMS


class Twin(NamedTuple):
    """One function in two forms.

    Attributes:
      value_fn: `value_fn(x) -> scalar`, of JAX.
      array_fn: `array_fn(library, x) -> values`, one for each vector along the last
        axis of `x`.
    """

    value_fn: Callable[[jax.Array], jax.Array]
    array_fn: Callable[[Any, Any], Any]

    def numpy_fn(self, x: np.ndarray) -> float:
        """Return the value at one vector, for packages that use NumPy."""
        return float(self.array_fn(np, x))


def sin_squared(library: Any, x: Any) -> Any:
    return library.square(library.sin(math.pi * x))


def quadratic(library: Any, x: Any) -> Any:
    return library.sum(library.square(x), axis=-1) / 2


def cubic(library: Any, x: Any) -> Any:
    terms = library.abs(x) ** 3 / 3 + library.square(x) / 2
    return library.sum(terms, axis=-1)


def levy(library: Any, x: Any) -> Any:
    w = 1 + (x - 1) / 4
    inner, last = w[..., :-1], w[..., -1]
    waves = 1 + 10 * sin_squared(library, inner + 1 / math.pi)
    return (
        sin_squared(library, w[..., 0])
        + library.sum(library.square(inner - 1) * waves, axis=-1)
        + library.square(last - 1) * (1 + sin_squared(library, 2 * last))
    )


def rosenbrock(library: Any, x: Any) -> Any:
    here, after = x[..., :-1], x[..., 1:]
    terms = 100 * library.square(after - library.square(here)) + library.square(
        1 - here
    )
    return library.sum(terms, axis=-1)


def ackley(library: Any, x: Any) -> Any:
    distance = library.sqrt(library.mean(library.square(x), axis=-1))
    waves = 1 - 2 * library.mean(sin_squared(library, x), axis=-1)
    return 20 * (1 - library.exp(-0.2 * distance)) + math.e - library.exp(waves)


def rastrigin(library: Any, x: Any) -> Any:
    return library.sum(library.square(x) + 20 * sin_squared(library, x), axis=-1)


TWINS = {
    array_fn.__name__: Twin(PROBLEMS[array_fn.__name__].value_fn, array_fn)
    for array_fn in (quadratic, cubic, levy, rosenbrock, ackley, rastrigin)
}
