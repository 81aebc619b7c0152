"""Corrections of the drift of clients towards minimizers of their own functions.

  fed_avg     none
  fed_prox    strength · (xᵢ − x), x the parameters at the start of the round
  scaffold    c − cᵢ, cᵢ the mean gradient estimate of client i in its last round
  fzoos       (∇s(xᵢ) − ∇sᵢ(xᵢ)) / (t + 1), sᵢ a surrogate of the function of client i

where c and s are the means of cᵢ and sᵢ over the clients, and t counts local steps.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from radazo import core, flat, random, validation
from radazo.estimators import gaussian_process, trajectory

_FEATURES_KEY = 0xFFFFFFFF  # Not the number of any round.

# One array for each floating-point leaf of the parameters, in float32 or wider.
Arrays = tuple[jax.Array, ...]

_dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)


class Correction(NamedTuple):
    """A term that a client adds to its gradient estimates.

    Attributes:
      init: `init(params, estimator_state) -> memory`, arrays that a client sends.
      prepare: `prepare(key_data, params) -> shared`, drawn in each round from the key
        of the run, the same for all clients.
      term: `term(shared, memory, mean, start, params, count)`, an array for each
        floating-point leaf: the term at `params` in local step `count` of a round that
        began at `start`. `mean` is the mean memory of the clients.
      learn: `learn(shared, params, mean_gradient, estimator_state) -> memory`, at the
        end of a round; `mean_gradient` is the mean estimate without the term.
    """

    init: Callable[[core.Params, Any], Any]
    prepare: Callable[[jax.Array, core.Params], Any]
    term: Callable[[Any, Any, Any, core.Params, core.Params, jax.Array], Arrays]
    learn: Callable[[Any, core.Params, Arrays, Any], Any]


def wide_leaves(params: core.Params) -> Arrays:
    """Return the floating-point leaves, in float32 or wider."""
    leaves = filter(core.is_floating, jax.tree.leaves(params))
    return tuple(jnp.asarray(x).astype(core.wide(x.dtype)) for x in leaves)


def replace(params: core.Params, arrays: Iterable[jax.Array]) -> core.Params:
    """Replace the floating-point leaves of `params`, keeping their types."""
    new = iter(arrays)
    return jax.tree.map(
        lambda x: next(new).astype(x.dtype) if core.is_floating(x) else x, params
    )


def zeros(params: core.Params) -> Arrays:
    """Return zeros like `wide_leaves`."""
    return optax.tree.zeros_like(wide_leaves(params))


def displacement(x: jax.Array, start: jax.Array) -> jax.Array:
    """Return x − start, 0 where they are equal, even if infinite."""
    return jnp.where(x == start, jnp.zeros_like(x), x - start)


fed_avg = Correction(
    lambda params, estimator_state: (),
    lambda key_data, params: (),
    lambda shared, memory, mean, start, params, count: zeros(params),
    lambda shared, params, mean_gradient, estimator_state: (),
)
"""No correction: McMahan et al., Communication-efficient learning of deep networks from
decentralized data, 2017. arXiv:1602.05629."""

scaffold = fed_avg._replace(
    init=lambda params, estimator_state: zeros(params),
    term=lambda shared, memory, mean, *_: optax.tree.sub(mean, memory),
    learn=lambda shared, params, mean_gradient, estimator_state: mean_gradient,
)
"""c − cᵢ: Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated
learning, 2020. arXiv:1910.06378, option II, whose (x − xᵢ) / (steps · learning_rate) is
the mean gradient of SGD."""


def fed_prox(strength: float) -> Correction:
    """Pull the clients towards the parameters at the start of the round.

      term = strength · (xᵢ − x)

    Args:
      strength: At least 0; 0 is `fed_avg`.
    Returns, Raises, Cost:
      A `Correction` without memory for `federated`; otherwise as `fzoos`.
    Example:
      >>> print(fed_prox(0.5).term((), (), (), jnp.zeros(2), jnp.ones(2), 0))
      (Array([0.5, 0.5], dtype=float32),)
    References:
      Li et al., Federated optimization in heterogeneous networks, 2020.
      arXiv:1812.06127.
    """
    hint = "It multiplies the distance from the parameters of the server."
    validation.non_negative("fed_prox", "strength", strength, hint)

    def term(*inputs: Any) -> Arrays:
        *_, start, params, _ = inputs
        moves = map(displacement, wide_leaves(params), wide_leaves(start))
        return tuple(jnp.asarray(strength, x.dtype) * x for x in moves)

    return fed_avg._replace(term=term)


def fzoos(
    *,
    num_features: int = 1000,
    length_scale: float = 1.0,
    jitter: float = 1e-6,
    mask: core.Mask = None,
) -> Correction:
    """Correct a client's gradient by the surrogates of all clients.

    At the end of a round a client fits the values in the buffer of its
    `trajectory_estimator` by M random Fourier features √(2 / M) cos(⟨wₘ, x⟩ + bₘ), the
    same for all clients, and sends its M weights. With Φ the features at the points of
    the buffer, and y the values standardized to mean 0 and deviation 1:

      weights = std(values) · Φᵀ (Φ Φᵀ + jitter · I)⁻¹ y
      ∇sᵢ(x) = −√(2 / M) · Σₘ weightsₘ sin(⟨wₘ, x⟩ + bₘ) wₘ
      term = (∇s(xᵢ) − ∇sᵢ(xᵢ)) / (t + 1)      s with the mean of the clients' weights

    Args:
      num_features: M, at least 1. The error of the kernel decreases as 1 / √M.
      length_scale: Distance over which the functions change: wₘ ~ N(0, I / its square).
      jitter: As in `trajectory_estimator`.
      mask: The mask of the estimator.
    Returns:
      A `Correction` for `federated`.
    Raises:
      TypeError, ValueError: If a number is out of range; in `init`, if the estimator is
        not a `trajectory_estimator`, or its mask selects another number of elements.
    Cost:
      No function values; M numbers in the state of each client, and M copies of the
      parameters during a round, shared by all clients.
    Example:
      >>> value_fn = lambda x, client: jnp.sum((x + 1 - 4 * client) ** 2)
      >>> estimator = radazo.trajectory_estimator(num_points=20, num_directions=2)
      >>> options = {"num_clients": 2, "num_local_steps": 25, "correction": fzoos()}
      >>> federated = radazo.federated.federated
      >>> run = federated(value_fn, estimator, optax.sgd(0.1), key=0, **options)
      >>> state, info = jax.jit(run.round)(run.init(jnp.zeros(1)))
      >>> print(jnp.round(state.params), info.num_values)  # The mean of −1 and 3.
      [1.] 150
    References:
      Shu et al., Federated zeroth-order optimization using trajectory-informed
      surrogate gradients, 2023. arXiv:2308.04077, without its evaluations where
      surrogates are uncertain, its choice of 500 points and its rejection of means.
    """
    api_name = "fzoos"
    hint = "1000 is a good start."
    validation.integer(api_name, "num_features", num_features, 1, hint)
    hint = "It is the distance between parameters over which the functions change."
    validation.positive(api_name, "length_scale", length_scale, hint)
    validation.check(api_name, jitter=jitter)
    factor = math.sqrt(2 / num_features)

    def init(params: core.Params, estimator_state: Any) -> jax.Array:
        if not isinstance(estimator_state, trajectory.TrajectoryState):
            rule, hint = "be a `trajectory_estimator`", "The surrogate fits its buffer."
            got = f"the state {type(estimator_state).__name__}"
            validation.fail("federated", "estimator", rule, got, hint, TypeError)
        layout = flat.layout(api_name, params, mask)
        dim = estimator_state.buffer.points.shape[1]
        if dim != layout.dim:
            rule, hint = "be that of the estimator", "Pass the same mask to both."
            got = f"one of {layout.dim} elements for points of {dim}"
            validation.fail(api_name, "mask", rule, got, hint)
        return jnp.zeros(num_features, layout.dtype)

    def prepare(key_data: jax.Array, params: core.Params) -> tuple[jax.Array, ...]:
        layout = flat.layout(api_name, params, mask)
        words = random.fold_in(key_data, jnp.uint32(_FEATURES_KEY))
        size, dtype = num_features * layout.dim, layout.dtype
        normal = random.normal(random.fold_in(words, 0), size, dtype)
        key = random.typed(random.fold_in(words, 1))
        phases = jax.random.uniform(key, (num_features,), dtype, maxval=2 * math.pi)
        frequencies = normal.reshape(num_features, layout.dim)
        return frequencies / jnp.asarray(length_scale, dtype), phases

    def term(shared: Any, memory: Any, mean: Any, *rest: Any) -> Arrays:
        _, params, count = rest
        layout, (frequencies, phases) = flat.layout(api_name, params, mask), shared
        angles = _dot(flat.ravel(layout, params)[None], frequencies.T) + phases[None]
        slopes = -factor * (mean - memory) * jnp.sin(angles[0])
        gradient = _dot(slopes, frequencies) / (count + 1).astype(layout.dtype)
        return wide_leaves(flat.unravel(layout, params, gradient, jnp.uint32(count)))

    def learn(shared: Any, params: Any, mean_gradient: Any, state: Any) -> jax.Array:
        """Return the (M,) weights of the features."""
        del params, mean_gradient
        (frequencies, phases), buffer = shared, state.buffer
        filled = gaussian_process.filled_rows(buffer)
        angles = _dot(buffer.points, frequencies.T) + phases[None]
        rows = factor * jnp.cos(angles)
        rows = jnp.where(filled[:, None], rows, jnp.zeros_like(rows))
        _, deviation, standard = gaussian_process.standardize(buffer.values, filled)
        cholesky = gaussian_process.factorize(_dot(rows, rows.T), filled, jitter)
        solved = jax.scipy.linalg.cho_solve((cholesky, True), standard)
        weights = deviation * _dot(solved, rows)
        return jnp.where(jnp.isfinite(weights), weights, jnp.zeros_like(weights))

    return Correction(init, prepare, term, learn)
