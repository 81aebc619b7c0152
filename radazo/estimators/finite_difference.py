"""Estimators that remember nothing but the time: one function, six laws of directions.

The estimate is the mean of slope times direction, taken in `averaging`; what tells the
estimators apart is the law of directions, and with it what `smoothing` means.
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
    """Finite differences along directions of any law.

    What `sphere_estimator` and its siblings are made of; use it with a law of your own.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing              forward
      slopeₖ = (f(x + smoothing · uₖ) − f(x − smoothing · uₖ)) / (2 smoothing)  central
      slopeₖ = f(x + smoothing · uₖ) / smoothing                       one_point
      slopeₖ = ⟨∇f(x), uₖ⟩, by forward mode                            exact
      g = factor(d) / |kept| · Σ_{k kept} slopeₖ · uₖ

    `kept` are the directions whose values are finite. If there is none, g is zero.
    Any rule goes behind it: with `scale_by_radazo` it is R-AdaZO. `one_point` is so
    noisy that no rule helps; `forward_mode` sees nothing of a staircase.

    Args:
      sampler: Law of the directions, as `sphere`; see `sampler_from`.
      num_directions: K, at least 1, or None for d, as many as there are perturbed
        elements. The variance of the estimate falls as 1/K.
      smoothing: Distance moved along a direction, in units of ‖u‖; greater than 0, or
        a schedule of the number of estimates so far. Larger is more bias (in smoothing
        for forward, in smoothing² for central) and less rounding.
      difference: `forward`, `central`, `one_point`, `forward_mode`, or a `Difference`
        of your own.
      chunk_size: Directions evaluated in one batch, at least 1.
      terms: If True, `value_fn` returns an array of terms whose sum is the objective,
        and differences are taken term by term: one to two digits more in float32.
      mask: Which leaves are perturbed: a pytree of bools, a prefix of one, or a
        function of the parameters. Other leaves, and those that are not floating
        point, stay as they are and get a gradient of zero.
      sharding: `NamedSharding(mesh, PartitionSpec("directions"))` shares the function
        values of a step among the devices along that axis (or axes) of a mesh, whose
        axes are `AxisType.Auto`; further axes are free for batches and parameters that
        are sharded. One number a value goes over the wire; each device draws all
        directions again for the mean. Directions are the same on any number of
        devices; so, where it was tried (CPUs, `chunk_size=1`), are all bits. Not for
        `forward_mode`.
    Returns:
      An `Estimator`. Its value is f(x) for `forward` and `forward_mode`, for `central`
      and      `one_point` the mean of the values taken. With `has_aux`, `info.aux` is
      that of
      f(x) for `forward` and `forward_mode`, and for the others of the first point
      beside it,
      f(x + smoothing · u₀); all but `forward` hold the aux of all points on the way.
    Raises:
      TypeError: If an argument is of the wrong kind, or `value_fn` does not return a
        real number, or has no derivative in forward mode for `forward_mode`.
      ValueError: If an argument is out of its range, `value_fn` returns an array where
        `terms` is False, or nothing in the parameters can be perturbed.
    Cost:
      K + 1 function values (`forward`), 2K (`central`) or K (`one_point`; and
      `forward_mode`, each with a derivative) per step. Beside the gradient
      a direction and a perturbed point, one to three copies of the parameters, for each
      of the `chunk_size` directions in work; more where many leaves are batched.
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
    """Finite differences along K points of the unit sphere: the paper's estimator.

    One norm over all leaves jointly; `smoothing` is the Euclidean distance moved. In
    low precision mind that a step of 1e-3 moves only 1.2 % of a million bfloat16
    weights of size 0.02: there take `smoothing` near 1e-3 · √d, or another law.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = (d / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step. Beside the gradient
      a direction and a perturbed point, one to three copies of the parameters, for each
      of the `chunk_size` directions in work; more where many leaves are batched.
    Example:
      >>> estimator = sphere_estimator(num_directions=2000)
      >>> fn = lambda x: x[0] - 2 * x[1]
      >>> value_and_grad = jax.jit(radazo.value_and_grad(fn, estimator))
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
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
    """Finite differences along K standard normal directions.

    `smoothing` is the standard deviation of the move of each parameter; the distance
    moved is about smoothing · √d, so that `smoothing` / √d here does what `smoothing`
    does in `sphere_estimator`.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = (1 / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d + 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step. Beside the gradient
      a direction and a perturbed point, one to three copies of the parameters, for each
      of the `chunk_size` directions in work; more where many leaves are batched.
    Example:
      >>> estimator = gaussian_estimator(num_directions=5000)
      >>> fn = lambda x: x[0] - 2 * x[1]
      >>> value_and_grad = jax.jit(radazo.value_and_grad(fn, estimator))
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
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
    """Finite differences along K vectors of independent signs: the cheapest noise.

    Every parameter moves by `smoothing`, up or down; the distance moved is
    smoothing · √d. One random bit an element, so that drawing directions costs next to
    nothing where that is what a step spends its time on.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = (1 / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step. Beside the gradient
      a direction and a perturbed point, one to three copies of the parameters, for each
      of the `chunk_size` directions in work; more where many leaves are batched.
    Example:
      >>> estimator = rademacher_estimator(num_directions=5000)
      >>> fn = lambda x: x[0] - 2 * x[1]
      >>> value_and_grad = jax.jit(radazo.value_and_grad(fn, estimator))
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
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
    """Finite differences along K random coordinates, or along each of them once.

      slopeₖ = (f(x + smoothing · eᵢ) − f(x)) / smoothing
      i = i(k) uniform in 1..d, with replacement;  i = k if `num_directions` is None
      g = (d / K) · Σₖ slopeₖ · eᵢ

    On a linear function ⟨a, x⟩ the total variance of g is (d − 1) ‖a‖² / K, and 0 with
    each coordinate once: the ordinary gradient by differences, which no key changes.

    Args:
      num_directions: K, at least 1, of `radazo.directions.coordinate`; None takes each
        coordinate once, K = d, of `radazo.directions.basis`. If a value is not finite,
        its coordinate gets 0 and the others are multiplied by d / |kept|, as always.
      smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step, K = d for each once,
      whose slopes are a further copy of the parameters. Beside the gradient a direction
      and a perturbed point, one to three copies of the parameters, for each of the
      `chunk_size` directions in work; more where many leaves are batched.
    Example:
      >>> estimator = coordinate_estimator(num_directions=5000)
      >>> fn = lambda x: x[0] - 2 * x[1]
      >>> value_and_grad = jax.jit(radazo.value_and_grad(fn, estimator))
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
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
    """Finite differences along K orthonormal directions.

    The directions of a step span a random subspace, and the estimate is the gradient
    projected on it, times d / K: the exact gradient of a linear function at K = d.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing,  ⟨uⱼ, uₖ⟩ = 1 if j = k else 0
      g = (d / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d / K − 1) ‖a‖².

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`; `num_directions` at most d.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; and if
        `num_directions` > d, at the first estimate.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; about 3K copies of
      the parameters, since directions that know of each other are held together.
    Example:
      >>> estimator = orthogonal_estimator(num_directions=2)
      >>> fn = lambda x: x[0] - 2 * x[1]
      >>> value_and_grad = jax.jit(radazo.value_and_grad(fn, estimator))
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))  # K = d: exact
      >>> print(jnp.round(gradient, 2))
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
