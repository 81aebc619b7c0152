"""Estimate gradients by finite differences along random directions.

`finite_difference_estimator` takes any sampler; the presets choose one.
"""

from jax.sharding import NamedSharding

from radazo import core, differences, directions, validation
from radazo.estimators import build, mean


def finite_difference_estimator(
    sampler: directions.DirectionSampler,
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient by finite differences along sampled directions.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing              forward
      slopeₖ = (f(x + smoothing · uₖ) − f(x − smoothing · uₖ)) / (2 smoothing)  central
      slopeₖ = f(x + smoothing · uₖ) / smoothing                       one_point
      slopeₖ = ⟨∇f(x), uₖ⟩, by forward-mode differentiation            forward_mode
      g = factor(d) / |kept| · Σ_{k kept} slopeₖ · uₖ

    Directions whose values are not finite are dropped; if all are dropped, g is zero.
    With `scale_by_radazo` it is R-AdaZO. `one_point` is too noisy to be practical;
    `forward_mode` cannot optimize piecewise constant functions.

    Args:
      sampler: Sampler of the directions, e.g. `radazo.directions.sphere`.
      num_directions: K, at least 1, or None for d, the number of perturbed elements.
        The variance of the estimate falls as 1/K.
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
        function evaluations over the devices along that axis (or axes) of a mesh whose
        axes are `AxisType.Auto`. Devices exchange one number per value, and each
        redraws all directions, which do not depend on the number of devices. With
        `chunk_size=1`, results were bitwise equal on CPUs. Not for `forward_mode`.
    Returns:
      An `Estimator`. With `forward` and `forward_mode`, its value and aux are those of
      f(x). With `central` and `one_point`, its value is the mean of all values and its
      aux that of f(x + smoothing · u₀). All but `forward` hold the aux of all points in
      memory.
    Raises:
      TypeError: If an argument has the wrong type, or `value_fn` does not return real
        numbers or does not support forward-mode differentiation for `forward_mode`.
      ValueError: If an argument is out of range, `value_fn` returns an array with
        `terms=False`, or no element of the parameters can be perturbed.
    Cost:
      K + 1 function values (`forward`), 2K (`central`) or K (`one_point`, and
      `forward_mode`, each with a derivative) per step. In addition to the gradient, one
      to three copies of the parameters for each of the `chunk_size` directions in a
      batch.
    Example:
      >>> estimator = finite_difference_estimator(
      ...     radazo.directions.orthogonal, num_directions=3
      ... )
      >>> value_and_grad = radazo.value_and_grad(lambda x: 2 * x.sum(), estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(3))  # K = d: exact
      >>> print(jnp.round(gradient, 2))
      [2. 2. 2.]
    References:
      Nesterov and Spokoiny, Random gradient-free minimization of convex functions,
      2017. Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, equation 2.
    """
    api_name = "finite_difference_estimator"
    validation.check(api_name, sampler=sampler)
    options = mean.Options(sampler, num_directions, difference, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    return mean.estimator(api_name, options, settings)


def sphere_estimator(
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient along K points of the unit sphere, as R-AdaZO does.

    The norm spans all leaves, and `smoothing` is the Euclidean distance. A distance of
    1e-3 changes only 1.2 % of a million bfloat16 weights of size 0.02; in low precision
    use a `smoothing` near 1e-3 · √d, or another sampler.

      g = (d / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    The total variance of g on a linear function ⟨a, x⟩ is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Cost:
      As `finite_difference_estimator`.
    Example:
      >>> estimator = sphere_estimator(num_directions=2000)
      >>> grad_fn = jax.jit(radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator))
      >>> print(jnp.round(grad_fn(0, jnp.zeros(2))[1]))
      [ 1. -2.]
    References:
      Flaxman et al., Online convex optimization in the bandit setting, 2005. Shu et
      al., Refining adaptive zeroth-order optimization at ease, 2025. arXiv:2502.01014,
      equation 2.
    """
    return mean.estimator(
        "sphere_estimator",
        mean.Options(directions.sphere, num_directions, difference, chunk_size),
        build.Settings(smoothing, terms, mask, chunk_size, sharding),
    )


def gaussian_estimator(
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient along K standard normal directions.

    `smoothing` is the standard deviation of the perturbation of each element. For the
    same distance divide the `smoothing` of `sphere_estimator` by √d.

      g = (1 / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    The total variance of g on a linear function ⟨a, x⟩ is (d + 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Cost:
      As `finite_difference_estimator`.
    Example:
      >>> estimator = gaussian_estimator(num_directions=5000)
      >>> grad_fn = jax.jit(radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator))
      >>> print(jnp.round(grad_fn(0, jnp.zeros(2))[1]))
      [ 1. -2.]
    References:
      Nesterov and Spokoiny, Random gradient-free minimization of convex functions,
      2017. Equation 22. With `central` and K = 1: Malladi et al., Fine-tuning language
      models with just forward passes, 2023. arXiv:2305.17333.
    """
    return mean.estimator(
        "gaussian_estimator",
        mean.Options(directions.gaussian, num_directions, difference, chunk_size),
        build.Settings(smoothing, terms, mask, chunk_size, sharding),
    )


def rademacher_estimator(
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient along K vectors of independent random signs.

    Each element changes by ±smoothing, at a distance of smoothing · √d. The sampler is
    the cheapest: one random bit per element.

      g = (1 / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    The total variance of g on a linear function ⟨a, x⟩ is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Cost:
      As `finite_difference_estimator`.
    Example:
      >>> estimator = rademacher_estimator(num_directions=5000)
      >>> grad_fn = jax.jit(radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator))
      >>> print(jnp.round(grad_fn(0, jnp.zeros(2))[1]))
      [ 1. -2.]
    References:
      Spall, Multivariate stochastic approximation using a simultaneous perturbation
      gradient approximation, 1992.
    """
    return mean.estimator(
        "rademacher_estimator",
        mean.Options(directions.rademacher, num_directions, difference, chunk_size),
        build.Settings(smoothing, terms, mask, chunk_size, sharding),
    )


def coordinate_estimator(
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient along K random coordinates, or along each coordinate once.

      g = (d / K) · Σₖ slopeₖ · eᵢ        slopeₖ as in `finite_difference_estimator`
      i = i(k) uniform in 1..d, with replacement;  i = k if `num_directions` is None

    The total variance of g on a linear function ⟨a, x⟩ is (d − 1) ‖a‖² / K. With each
    coordinate once it is 0: g is the deterministic finite-difference gradient.

    Args:
      num_directions: K, at least 1, or None for each coordinate once. With None, a
        coordinate whose value is not finite gets 0, and the others are scaled by
        d / |kept|.
      smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Cost:
      As `finite_difference_estimator`; with each coordinate once, K = d and the slopes
      are another copy of the parameters.
    Example:
      >>> estimator = coordinate_estimator(num_directions=5000)
      >>> grad_fn = jax.jit(radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator))
      >>> print(jnp.round(grad_fn(0, jnp.zeros(2))[1]))
      [ 1. -2.]
    References:
      Lian et al., A comprehensive linear speedup analysis for asynchronous stochastic
      parallel optimization from zeroth-order to first-order, 2016. Each once: Liu et
      al., Zeroth-order stochastic variance reduction for nonconvex optimization, 2018
      (CoordGradEst).
    """
    each_once = num_directions is None
    return mean.estimator(
        "coordinate_estimator",
        mean.Options(
            directions.basis if each_once else directions.coordinate,
            num_directions,
            difference,
            chunk_size,
        ),
        build.Settings(smoothing, terms, mask, chunk_size, sharding),
    )


def orthogonal_estimator(
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient along K random orthonormal directions.

    The estimate is d / K times the projection of the gradient onto a random subspace,
    and exact for a linear function at K = d.

      g = (d / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`
      ⟨uⱼ, uₖ⟩ = 1 if j = k else 0

    The total variance of g on a linear function ⟨a, x⟩ is (d / K − 1) ‖a‖².

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`; `num_directions` at most d.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; and if
        `num_directions` > d, at the first estimate.
    Cost:
      Function values as `finite_difference_estimator`; about 3K copies of the
      parameters, since all directions are held at once.
    Example:
      >>> estimator = orthogonal_estimator(num_directions=2)
      >>> grad_fn = jax.jit(radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator))
      >>> print(jnp.round(grad_fn(0, jnp.zeros(2))[1], 2))  # K = d: exact
      [ 1. -2.]
    References:
      Kozak et al., Zeroth-order optimization with orthogonal random directions, 2023.
      arXiv:2107.03941.
    """
    return mean.estimator(
        "orthogonal_estimator",
        mean.Options(directions.orthogonal, num_directions, difference, chunk_size),
        build.Settings(smoothing, terms, mask, chunk_size, sharding),
    )
