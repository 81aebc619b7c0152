"""The table of all estimators, and what each of them promises in its docstring."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import radazo


class Row(NamedTuple):
    """An estimator under contract.

    Attributes:
      make: `make(num_directions=..., **options)`, as users call it.
      num_values: Function values of a first step with K directions.
      copies: Copies of the parameters in the state, for K directions.
      at_params: Whether the value of a step is f(x), and not a mean around it.
      memoryless: Whether an estimate from a fresh state is as good as any.
      chunks: Whether it takes `chunk_size`.
      random: Whether its estimate depends on the key.
    """

    make: Callable[..., radazo.Estimator]
    num_values: Callable[[int], int] = lambda k: k + 1
    copies: Callable[[int], float] = lambda k: 0
    at_params: bool = True
    memoryless: bool = True
    chunks: bool = True
    random: bool = True


def central(make: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(make, difference=radazo.central)


# Estimators that differ by the law of their directions alone.
LAWS = {
    "sphere": radazo.sphere_estimator,
    "gaussian": radazo.gaussian_estimator,
    "rademacher": radazo.rademacher_estimator,
    "coordinate": radazo.coordinate_estimator,
    "orthogonal": radazo.orthogonal_estimator,
}
ESTIMATORS = {name: Row(make) for name, make in LAWS.items()} | {
    "gaussian, central": Row(
        central(radazo.gaussian_estimator), lambda k: 2 * k, at_params=False
    ),
}
