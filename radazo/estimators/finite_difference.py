"""Estimate gradients by finite differences along random directions.

`finite_difference_estimator` takes any sampler; the presets choose one.
"""

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, cast

from jax.sharding import NamedSharding

from radazo import core, differences, directions
from radazo.estimators import build, mean

_Options = ParamSpec("_Options")


def finite_difference_estimator(
    sampler: directions.DirectionSampler,
    *,
    num_directions: int | None = core.NUM_DIRECTIONS,
    smoothing: core.Schedule | float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient by finite differences along sampled directions.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing     or another `difference`
      g = factor(d) / |kept| · Σ_{k kept} slopeₖ · uₖ

    Directions whose values are not finite are dropped; if all are dropped, g is zero.

    Args:
      sampler: Sampler of the directions, e.g. `radazo.directions.sphere`.
      num_directions: K, at least 1, or None for d, the number of perturbed elements.
      smoothing: Distance along a direction, in units of ‖u‖; greater than 0, or a
        schedule of the number of estimates so far. Larger values reduce rounding errors
        and increase the bias (linear for forward, quadratic for central).
      difference: `forward`, `central`, `one_point`, `forward_mode` or a `Difference`.
      chunk_size: Directions evaluated in one batch, at least 1.
      terms: If True, `value_fn` returns an array of terms whose sum is the objective.
        Differences are computed term by term, which gains one to two digits in float32.
      mask: Leaves to perturb: a pytree of bools, a prefix of one, or a function of the
        parameters. Other leaves and non-floating-point leaves get a gradient of zero.
      sharding: `NamedSharding(mesh, PartitionSpec("directions"))` distributes the
        evaluations over the devices along that axis (or axes) of a mesh whose axes are
        `AxisType.Auto`. Devices exchange one number per value and redraw all
        directions. Not for `forward_mode`.
    Returns:
      An `Estimator`. With `forward` and `forward_mode`, its value and aux are those of
      f(x); with `central` and `one_point` the mean of all values, and the aux of
      f(x + smoothing · u₀). All but `forward` hold all aux in memory.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range,
        `value_fn` does not return real numbers or returns an array with `terms=False`,
        or no element of the parameters can be perturbed.
    Cost:
      K + 1 function values (`forward`), 2K (`central`) or K (`one_point`, and
      `forward_mode`, each with a derivative) per step. Besides the gradient, one to
      three copies of the parameters for each direction of a batch.
    Example:
      >>> sampler = radazo.directions.orthogonal
      >>> estimator = finite_difference_estimator(sampler, num_directions=3)
      >>> value_and_grad = radazo.value_and_grad(lambda x: 2 * x.sum(), estimator)
      >>> print(jnp.round(value_and_grad(0, jnp.zeros(3))[1], 2))  # K = d: exact
      [2. 2. 2.]
    References:
      Nesterov and Spokoiny, Random gradient-free minimization of convex functions,
      2017. Shu et al., 2025, arXiv:2502.01014, equation 2.
    """
    options = mean.Options(sampler, num_directions, difference, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    return mean.estimator("finite_difference_estimator", options, settings)


_SECTIONS = """Args:
  num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
    `finite_difference_estimator`.
Returns, Cost:
  As `finite_difference_estimator`.
Example:
  >>> estimator = {name}(num_directions={number})
  >>> grad_fn = jax.jit(radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator))
  >>> print(jnp.round(grad_fn(0, jnp.zeros(2))[1]))
  [ 1. -2.]
References:"""


def _preset(
    general: Callable[Concatenate[Any, _Options], core.Estimator],
    sampler: directions.DirectionSampler,
    *,
    of_all: directions.DirectionSampler | None = None,
    example: int = 5000,
) -> Callable[[Callable[[], None]], Callable[_Options, core.Estimator]]:
    """Make a preset of `general` with the name and the docstring of a function.

    `of_all` is the sampler if `num_directions` is None, `example` K in the example.
    """

    def decorate(described: Callable[[], None]) -> Callable[_Options, core.Estimator]:
        def preset(
            *,
            num_directions: int | None,
            smoothing: core.Schedule | float,
            difference: differences.Difference,
            chunk_size: int,
            terms: bool,
            mask: core.Mask,
            sharding: NamedSharding | None,
        ) -> core.Estimator:
            chosen = of_all if of_all and num_directions is None else sampler
            options = mean.Options(chosen, num_directions, difference, chunk_size)
            settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
            return mean.estimator(described.__name__, options, settings)

        preset.__name__ = preset.__qualname__ = name = described.__name__
        sections = _SECTIONS.format(name=name, number=example)
        text = inspect.getdoc(described) or ""
        preset.__doc__ = text.replace("References:", sections)
        preset.__kwdefaults__ = cast(Any, general).__kwdefaults__
        return cast(Any, preset)

    return decorate


@_preset(finite_difference_estimator, directions.sphere)
def sphere_estimator() -> None:
    """Estimate the gradient along K points of the unit sphere, as R-AdaZO does.

    `smoothing` is the Euclidean distance over all leaves; in bfloat16 take 1e-3 · √d.

      g = (d / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    The total variance of g on a linear function ⟨a, x⟩ is (d − 1) ‖a‖² / K.

    References:
      Flaxman et al., Online convex optimization in the bandit setting, 2005.
    """


@_preset(finite_difference_estimator, directions.gaussian)
def gaussian_estimator() -> None:
    """Estimate the gradient along K standard normal directions.

    `smoothing` is the standard deviation of the perturbation of each element. For the
    same distance divide the `smoothing` of `sphere_estimator` by √d.

      g = (1 / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    The total variance of g on a linear function ⟨a, x⟩ is (d + 1) ‖a‖² / K.

    References:
      Nesterov and Spokoiny, 2017, equation 22. With `central` and K = 1: Malladi et
      al., Fine-tuning language models with just forward passes, 2023. arXiv:2305.17333.
    """


@_preset(finite_difference_estimator, directions.rademacher)
def rademacher_estimator() -> None:
    """Estimate the gradient along K vectors of independent random signs.

    Each element changes by ±smoothing. The cheapest sampler: one bit per element.

      g = (1 / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    The total variance of g on a linear function ⟨a, x⟩ is (d − 1) ‖a‖² / K.

    References:
      Spall, Multivariate stochastic approximation using a simultaneous perturbation
      gradient approximation, 1992.
    """


@_preset(finite_difference_estimator, directions.coordinate, of_all=directions.basis)
def coordinate_estimator() -> None:
    """Estimate the gradient along K random coordinates, or along each coordinate once.

      g = (d / K) · Σₖ slopeₖ · eᵢ        slopeₖ as in `finite_difference_estimator`
      i = i(k) uniform in 1..d, with replacement;  i = k if `num_directions` is None

    The total variance of g on a linear function ⟨a, x⟩ is (d − 1) ‖a‖² / K. If each
    coordinate is used once, it is 0: g is the finite-difference gradient, but a
    coordinate with a non-finite value gets 0, and d / |kept| scales the others.

    References:
      Lian et al., A comprehensive linear speedup analysis for asynchronous stochastic
      parallel optimization from zeroth-order to first-order, 2016. Each once: Liu et
      al., 2018, as in `svrg_estimator` (CoordGradEst).
    """


@_preset(finite_difference_estimator, directions.orthogonal, example=2)
def orthogonal_estimator() -> None:
    """Estimate the gradient along K random orthonormal directions, K at most d.

    It is d / K times the projection of the gradient onto a random subspace.

      g = (d / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`
      ⟨uⱼ, uₖ⟩ = 1 if j = k else 0

    The total variance of g on a linear function ⟨a, x⟩ is (d / K − 1) ‖a‖². About 3K
    copies of the parameters are held. If K > d, the first estimate fails.

    References:
      Kozak et al., Zeroth-order optimization with orthogonal random directions, 2023.
      arXiv:2107.03941.
    """
