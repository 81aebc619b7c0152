"""The table of all estimators, and what each of them promises in its docstring."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
      linear: Whether an estimate of 2f is twice that of f.
      alone: Whether it asks no other function than `value_fn`.
      moves: Whether it evaluates points beside the parameters.
    """

    make: Callable[..., radazo.Estimator]
    num_values: Callable[[int], int] = lambda k: k + 1
    copies: Callable[[int], float] = lambda k: 0
    at_params: bool = True
    memoryless: bool = True
    chunks: bool = True
    random: bool = True
    linear: bool = True
    alone: bool = True
    moves: bool = True


# Estimators that differ in their sampler alone.
PRESETS = {
    "sphere": radazo.sphere_estimator,
    "gaussian": radazo.gaussian_estimator,
    "rademacher": radazo.rademacher_estimator,
    "coordinate": radazo.coordinate_estimator,
    "orthogonal": radazo.orthogonal_estimator,
}


def with_options(make: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """`make` with some of its arguments given, whatever else it is called with."""

    @functools.wraps(make)
    def made(**options: Any) -> radazo.Estimator:
        return make(**options | fixed)

    return made


def in_all_dimensions(k: int) -> int:
    del k
    return 6 + 1  # The parameters of the contracts have six elements.


@functools.wraps(radazo.svrg_estimator)
def around_a_snapshot(**options: Any) -> radazo.Estimator:
    estimator = radazo.sphere_estimator(**options)
    return radazo.svrg_estimator(estimator, whole_objective)


def guarded_by(guard: Callable[..., radazo.Estimator]) -> Callable[..., Any]:
    """`guard` around the sphere's estimator, made as that is."""

    @functools.wraps(guard)
    def made(**options: Any) -> radazo.Estimator:
        return guard(radazo.sphere_estimator(**options))

    return made


def whole_objective(params: Any) -> jax.Array:
    leaves = jax.tree.leaves(params)
    moved = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((jnp.sum(x.astype(jnp.float32)) for x in moved), jnp.float32(0))


PRIORS = {
    "last estimate": radazo.estimators.last_estimate,
    "last step": radazo.estimators.last_step,
    "momentum": radazo.estimators.momentum_prior(0.9),
}
ESTIMATORS = {name: Row(make) for name, make in PRESETS.items()} | {
    "two-point": Row(
        with_options(radazo.gaussian_estimator, difference=radazo.central),
        lambda k: 2 * k,
        at_params=False,
    ),
    "one-point": Row(
        with_options(radazo.sphere_estimator, difference=radazo.one_point),
        lambda k: k,
        at_params=False,
    ),
    "forward mode": Row(
        with_options(radazo.sphere_estimator, difference=radazo.forward_mode),
        lambda k: k,
        moves=False,
    ),
    "each coordinate": Row(
        with_options(radazo.coordinate_estimator, num_directions=None),
        in_all_dimensions,
        random=False,
    ),
    "own sampler": Row(
        with_options(
            radazo.finite_difference_estimator,
            sampler=radazo.directions.sampler_from(
                lambda key, dim: jax.random.laplace(key, (dim,)), factor=0.5
            ),
        )
    ),
    "hadamard": Row(radazo.hadamard_estimator, memoryless=False),
    "majority vote": Row(radazo.majority_vote_estimator, linear=False),
    **{
        f"guided by {name}": Row(
            with_options(radazo.prior_guided_estimator, prior=prior),
            copies=lambda k: 1,
            memoryless=False,
        )
        for name, prior in PRIORS.items()
    },
    "values of past steps": Row(
        radazo.history_reuse_estimator,
        lambda k: k,
        at_params=False,
        memoryless=False,
    ),
    "mean of past estimates": Row(radazo.history_mean_estimator, memoryless=False),
    "snapshot": Row(
        around_a_snapshot,
        lambda k: 3 * (k + 1),
        copies=lambda k: 2,
        memoryless=False,
        alone=False,
    ),
    **{
        f"guarded by {guard.__name__}": Row(guarded_by(guard), memoryless=False)
        for guard in (radazo.skip_outliers, radazo.clip_outliers)
    },
    "trajectory": Row(
        with_options(radazo.trajectory_estimator, num_points=20),
        copies=lambda k: 20,
        memoryless=False,
    ),
    "interpolation": Row(
        radazo.interpolation_estimator,
        copies=lambda k: k + 1,
        memoryless=False,
        chunks=False,
    ),
}

# One of each kind of program. The others differ from these in the sampler, the prior or
# the treatment of outliers, which have tests of their own.
KINDS = {
    name: ESTIMATORS[name]
    for name in (
        "sphere",
        "orthogonal",
        "two-point",
        "forward mode",
        "each coordinate",
        "hadamard",
        "majority vote",
        "guided by momentum",
        "values of past steps",
        "mean of past estimates",
        "snapshot",
        "guarded by skip_outliers",
        "trajectory",
        "interpolation",
    )
}
