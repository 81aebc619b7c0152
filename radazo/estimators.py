"""Estimators that remember nothing: the mean of slope times direction.

  g = factor / |kept| · Σ_{k kept} slopeₖ · uₖ

The five estimators are one function with another law of directions. The mean is taken
over `chunk_size` directions at a time: 1 draws, evaluates and forgets one direction
after the other (a step then needs one perturbed point and one accumulator, whatever K),
`num_directions` evaluates all of them in one batch. The directions are the same; the
estimate differs in its last places, since a chunk is summed before it is added, and
since a batched function may round differently from a single one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from radazo import base, checks, differences, directions, leaves, threefry

_SMOOTHING_WAY_OUT = (
    "It is the distance moved along a direction, or a schedule of it: "
    "for float32 and a function of order one, 1e-3 is a good start."
)


class EstimatorState(NamedTuple):
    """State of an estimator that remembers nothing but the time.

    Attributes:
      count: int32 scalar, estimates so far; the schedule of `smoothing` reads it.
    """

    count: jax.Array


def finite_difference_estimator(
    distribution: directions.Distribution,
    *,
    num_directions: int = 10,
    smoothing: base.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: base.Mask = None,
) -> base.Estimator:
    """Finite differences along directions of any law.

    What `sphere_estimator` and its siblings are made of; use it with a law of your own.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing              forward
      slopeₖ = (f(x + smoothing · uₖ) − f(x − smoothing · uₖ)) / (2 · smoothing)  central
      g = factor(d) / |kept| · Σ_{k kept} slopeₖ · uₖ

    `kept` are the directions whose values are finite. If there is none, g is zero.

    Args:
      distribution: Law of the directions, as `sphere`; see `Distribution`.
      num_directions: K, at least 1. The variance of the estimate falls as 1/K.
      smoothing: Distance moved along a direction, in units of ‖u‖; greater than 0, or
        a schedule of the number of estimates so far. Larger is more bias (in smoothing
        for forward, in smoothing² for central) and less rounding.
      difference: `forward` or `central`.
      chunk_size: Directions evaluated in one batch, at least 1.
      terms: If True, `value_fn` returns an array of terms whose sum is the objective,
        and differences are taken term by term: one to two digits more in float32.
      mask: Which leaves are perturbed: a pytree of bools, a prefix of one, or a
        function of the parameters. Other leaves, and those that are not floating
        point, stay as they are and get a gradient of zero.
    Returns:
      An `Estimator`. Its value is f(x) for `forward`, and for `central` the mean of the
      compared values. With `has_aux`, `info.aux` is that of f(x) for `forward` and of
      the first compared point, f(x + smoothing · u₀), for `central`.
    Raises:
      TypeError: If an argument is of the wrong kind, or `value_fn` does not return a
        real number.
      ValueError: If an argument is out of its range, `value_fn` returns an array where
        `terms` is False, or nothing in the parameters can be perturbed.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; `chunk_size` + 1
      copies of the parameters beside the gradient, at most.
    Example:
      >>> estimator = finite_difference_estimator(radazo.orthogonal, num_directions=3)
      >>> value_and_grad = radazo.value_and_grad(lambda x: 2 * x.sum(), estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(3))  # K = d: exact
      >>> print(jnp.round(gradient, 2))
      [2. 2. 2.]
    References:
      Nesterov and Spokoiny, Random gradient-free minimization of convex functions,
      2017. Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, equation 2.
    """
    where = "finite_difference_estimator"
    checks.instance(
        where,
        "distribution",
        distribution,
        directions.Distribution,
        "Pass `radazo.sphere`, say, or a `radazo.Distribution` of your own.",
    )
    options = _Options(
        distribution, num_directions, smoothing, difference, chunk_size, terms, mask
    )
    return _estimator(where, options)


class _Options(NamedTuple):
    distribution: directions.Distribution
    num_directions: int
    smoothing: Any
    difference: differences.Difference
    chunk_size: int
    terms: bool
    mask: base.Mask


def _estimator(where: str, options: _Options) -> base.Estimator:
    _check(where, options)

    def init(params: base.Params) -> EstimatorState:
        leaves.layout(where, params, options.mask)
        return EstimatorState(jnp.zeros((), jnp.int32))

    # Compiled here, so that a step outside of any jit compiles once too: what a bound
    # `value_fn` is made of is compared, and its arrays are arguments.
    @functools.partial(jax.jit, static_argnames=("layout", "has_aux"))
    def run(
        key: jax.Array,
        value_fn: base.ValueFn,
        params: base.Params,
        state: EstimatorState,
        layout: leaves.Layout,
        has_aux: bool,
    ) -> tuple[jax.Array, base.Params, EstimatorState, base.EstimateInfo]:
        schedule = options.smoothing
        smoothing = schedule(state.count) if callable(schedule) else schedule
        value, total, turn, info = _sum_over_directions(
            options,
            layout,
            key,
            differences.evaluation(
                where, value_fn, terms=options.terms, has_aux=has_aux
            ),
            params,
            jnp.asarray(smoothing, layout.dtype),
        )
        num_kept = jnp.maximum(jnp.sum(info.kept, dtype=jnp.int32), 1)
        factor = options.distribution.factor(layout.dim)
        scale = factor / num_kept.astype(layout.dtype)
        gradient = leaves.unravel(layout, params, scale * total, turn)
        state = EstimatorState(optax.safe_increment(state.count))
        return value, gradient, state, info

    def estimate(
        key: jax.Array | int,
        value_fn: base.ValueFn,
        params: base.Params,
        state: EstimatorState,
        *,
        has_aux: bool = False,
    ) -> tuple[jax.Array, base.Params, EstimatorState, base.EstimateInfo]:
        layout = leaves.layout(where, params, options.mask)
        if not isinstance(value_fn, jax.tree_util.Partial):
            value_fn = jax.tree_util.Partial(value_fn)
        words = threefry.key_data(where, key)
        return run(words, value_fn, params, state, layout, has_aux)

    return base.Estimator(init, estimate, memoryless=not callable(options.smoothing))


def _check(where: str, options: _Options) -> None:
    checks.integer(
        where,
        "num_directions",
        options.num_directions,
        1,
        "The variance of the estimate falls as one over it; 10 is a good start.",
    )
    checks.positive(
        where, "smoothing", options.smoothing, _SMOOTHING_WAY_OUT, schedule=True
    )
    checks.instance(
        where,
        "difference",
        options.difference,
        differences.Difference,
        "Pass `radazo.forward` or `radazo.central`.",
    )
    checks.integer(
        where,
        "chunk_size",
        options.chunk_size,
        1,
        "1 takes one direction after the other, `num_directions` all at once.",
    )
    checks.instance(
        where,
        "terms",
        options.terms,
        bool,
        "True says that `value_fn` returns terms whose sum is the objective.",
    )


def _sum_over_directions(
    options: _Options,
    layout: leaves.Layout,
    key: jax.Array,
    evaluate: differences.Evaluate,
    params: base.Params,
    smoothing: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, base.EstimateInfo]:
    """The value, Σₖ slopeₖ · uₖ over kept directions, chunks done, what was seen."""
    distribution, difference = options.distribution, options.difference
    num_directions = options.num_directions
    chunk_size = min(options.chunk_size, num_directions)
    start = difference.start(evaluate, params)
    prepared = distribution.prepare(key, num_directions, layout.dim, layout.dtype)

    def one(k: jax.Array, turn: jax.Array) -> tuple[jax.Array, Any]:
        direction = distribution.draw(prepared, k, layout.dim, layout.dtype)
        slope, value, aux = difference.slope(
            evaluate,
            lambda step: leaves.perturb(layout, params, direction, step, turn),
            start,
            smoothing,
        )
        kept = jnp.isfinite(slope)
        slope = jnp.where(kept, slope, jnp.zeros_like(slope))
        return direction, (slope, kept, value, aux)

    def add_chunk(carry: tuple[jax.Array, jax.Array], ks: jax.Array) -> tuple[Any, Any]:
        total, turn = carry
        if chunk_size == 1:
            direction, seen = one(ks[0], turn)
            total = total + seen[0].astype(layout.dtype) * direction
            seen = jax.tree.map(lambda x: x[None], seen)
        else:
            block, seen = jax.vmap(one, in_axes=(0, None))(ks, turn)
            slopes = seen[0].astype(layout.dtype)
            total = total + jnp.dot(slopes, block, precision=lax.Precision.HIGHEST)
        return (total, turn + jnp.uint32(1)), seen

    carry = jnp.zeros(layout.dim, layout.dtype), jnp.uint32(0)
    ks = jnp.arange(num_directions, dtype=jnp.uint32)
    whole = num_directions - num_directions % chunk_size
    carry, seen = lax.scan(add_chunk, carry, ks[:whole].reshape(-1, chunk_size))
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    if whole < num_directions:
        carry, rest = add_chunk(carry, ks[whole:])
        seen = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), seen, rest)

    slopes, kept, values, auxs = seen
    num_values = jnp.asarray(difference.num_values(num_directions), jnp.int32)
    if start is None:
        num_kept = jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
        sum_kept = jnp.sum(jnp.where(kept, values, jnp.zeros_like(values)))
        mean = sum_kept / num_kept.astype(values.dtype)
        value = jnp.where(jnp.any(kept), mean, values[0])
        aux = jax.tree.map(lambda x: x[0], auxs)
    else:
        value, aux = jnp.sum(start[0]), start[1]
    return value, *carry, base.EstimateInfo(slopes, kept, num_values, aux)


def sphere_estimator(
    *,
    num_directions: int = 10,
    smoothing: base.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: base.Mask = None,
) -> base.Estimator:
    """Finite differences along K points of the unit sphere: the paper's estimator.

    One norm over all leaves jointly; `smoothing` is the Euclidean distance moved. In low
    precision mind that a step of 1e-3 moves only 1.2 % of a million bfloat16 weights of
    size 0.02: there take `smoothing` near 1e-3 · √d, or `gaussian_estimator`.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = (d / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; `chunk_size` + 1
      copies of the parameters beside the gradient, at most.
    Example:
      >>> estimator = sphere_estimator(num_directions=2000)
      >>> value_and_grad = radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
      [ 1. -2.]
    References:
      Flaxman et al., Online convex optimization in the bandit setting, 2005. Shu et
      al., Refining adaptive zeroth-order optimization at ease, 2025. arXiv:2502.01014,
      equation 2.
    """
    return _estimator(
        "sphere_estimator",
        _Options(
            directions.sphere,
            num_directions,
            smoothing,
            difference,
            chunk_size,
            terms,
            mask,
        ),
    )


def gaussian_estimator(
    *,
    num_directions: int = 10,
    smoothing: base.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: base.Mask = None,
) -> base.Estimator:
    """Finite differences along K standard normal directions.

    `smoothing` is the standard deviation of the move of each parameter; the distance
    moved is about smoothing · √d, so that `smoothing` / √d here does what `smoothing`
    does in `sphere_estimator`.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = (1 / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d + 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; `chunk_size` + 1
      copies of the parameters beside the gradient, at most.
    Example:
      >>> estimator = gaussian_estimator(num_directions=5000)
      >>> value_and_grad = radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
      [ 1. -2.]
    References:
      Nesterov and Spokoiny, Random gradient-free minimization of convex functions,
      2017. Equation 22. With `central` and K = 1: Malladi et al., Fine-tuning language
      models with just forward passes, 2023. arXiv:2305.17333.
    """
    return _estimator(
        "gaussian_estimator",
        _Options(
            directions.gaussian,
            num_directions,
            smoothing,
            difference,
            chunk_size,
            terms,
            mask,
        ),
    )


def rademacher_estimator(
    *,
    num_directions: int = 10,
    smoothing: base.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: base.Mask = None,
) -> base.Estimator:
    """Finite differences along K vectors of independent signs: the cheapest noise.

    Every parameter moves by `smoothing`, up or down; the distance moved is
    smoothing · √d. One random bit an element, so that drawing directions costs next to
    nothing where that is what a step spends its time on.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = (1 / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; `chunk_size` + 1
      copies of the parameters beside the gradient, at most.
    Example:
      >>> estimator = rademacher_estimator(num_directions=5000)
      >>> value_and_grad = radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
      [ 1. -2.]
    References:
      Spall, Multivariate stochastic approximation using a simultaneous perturbation
      gradient approximation, 1992.
    """
    return _estimator(
        "rademacher_estimator",
        _Options(
            directions.rademacher,
            num_directions,
            smoothing,
            difference,
            chunk_size,
            terms,
            mask,
        ),
    )


def coordinate_estimator(
    *,
    num_directions: int = 10,
    smoothing: base.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: base.Mask = None,
) -> base.Estimator:
    """Finite differences along K coordinates, chosen at random with replacement.

      slopeₖ = (f(x + smoothing · eᵢ) − f(x)) / smoothing,  i = i(k) uniform in 1..d
      g = (d / K) · Σₖ slopeₖ · eᵢ

    On a linear function ⟨a, x⟩ the total variance of g is (d − 1) ‖a‖² / K.

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; `chunk_size` + 1
      copies of the parameters beside the gradient, at most.
    Example:
      >>> estimator = coordinate_estimator(num_directions=5000)
      >>> value_and_grad = radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))
      >>> print(jnp.round(gradient))
      [ 1. -2.]
    References:
      Lian et al., A comprehensive linear speedup analysis for asynchronous stochastic
      parallel optimization from zeroth-order to first-order, 2016.
    """
    return _estimator(
        "coordinate_estimator",
        _Options(
            directions.coordinate,
            num_directions,
            smoothing,
            difference,
            chunk_size,
            terms,
            mask,
        ),
    )


def orthogonal_estimator(
    *,
    num_directions: int = 10,
    smoothing: base.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: base.Mask = None,
) -> base.Estimator:
    """Finite differences along K orthonormal directions.

    The directions of a step span a random subspace, and the estimate is the gradient
    projected on it, times d / K: the exact gradient of a linear function at K = d.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing,  ⟨uⱼ, uₖ⟩ = 1 if j = k else 0
      g = (d / K) · Σₖ slopeₖ · uₖ

    On a linear function ⟨a, x⟩ the total variance of g is (d / K − 1) ‖a‖².

    Args:
      num_directions, smoothing, difference, chunk_size, terms, mask: As in
        `finite_difference_estimator`; `num_directions` at most d.
    Returns:
      An `Estimator`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; and if
        `num_directions` > d, at the first estimate.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; about 2K copies of
      the parameters, since directions that know of each other are held together.
    Example:
      >>> estimator = orthogonal_estimator(num_directions=2)
      >>> value_and_grad = radazo.value_and_grad(lambda x: x[0] - 2 * x[1], estimator)
      >>> _, gradient = value_and_grad(0, jnp.zeros(2))  # K = d: exact
      >>> print(jnp.round(gradient, 2))
      [ 1. -2.]
    References:
      Kozak et al., Zeroth-order optimization with orthogonal random directions, 2023.
      arXiv:2107.03941.
    """
    return _estimator(
        "orthogonal_estimator",
        _Options(
            directions.orthogonal,
            num_directions,
            smoothing,
            difference,
            chunk_size,
            terms,
            mask,
        ),
    )
