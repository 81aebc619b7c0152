"""What a client of a federated run adds to its gradient estimates.

Left to themselves, clients drift in a round towards minimizers of their own functions.
Methods of the field differ in the correction alone:

  fed_avg     none
  fed_prox    strength · (xᵢ − x), towards the parameters x that the round began with
  scaffold    c − cᵢ, cᵢ the mean gradient estimate of client i in its last round
  fzoos       (∇s(xᵢ) − ∇sᵢ(xᵢ)) / (t + 1), sᵢ a surrogate of the function of client i

with c and s the means over the clients of cᵢ and of sᵢ, and t the local step.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, flat, random, validation
from radazo.estimators import gaussian_process, trajectory

_FEATURES = 0xFFFFFFFF  # No round has this number: the key of what all rounds share.

# One array for each floating-point leaf of the parameters, float32 at least.
Arrays = tuple[jax.Array, ...]


class Correction(NamedTuple):
    """What a client adds to its gradient estimates.

    `own` is what a client remembers from round to round and sends: arrays only.

    Attributes:
      init: `init(params, estimator_state) -> own`, of a client.
      prepare: `prepare(key_data, params) -> prepared`, what the clients share, drawn
        anew from a key that never changes.
      term: `term(prepared, own, mean_own, start, params, count)`, an array for each
        floating-point leaf: what is added at `params` in local step `count` of a round
        that began at `start`. `mean_own` is the mean over the clients.
      learn: `learn(prepared, params, mean_gradient, estimator_state) -> own`, at the
        end of a round; `mean_gradient` are the estimates without the correction.
    """

    init: Callable[[core.Params, Any], Any]
    prepare: Callable[[jax.Array, core.Params], Any]
    term: Callable[[Any, Any, Any, core.Params, core.Params, jax.Array], Arrays]
    learn: Callable[[Any, core.Params, Arrays, Any], Any]


def wide_leaves(params: core.Params) -> Arrays:
    """The floating-point leaves, in float32 at least."""
    found = [x for x in jax.tree.leaves(params) if core.is_floating(x)]
    return tuple(jnp.asarray(x).astype(core.wide(x.dtype)) for x in found)


def replaced(params: core.Params, arrays: Iterable[jax.Array]) -> core.Params:
    """`params` with these for its floating-point leaves, each in the leaf's type."""
    new = iter(arrays)
    return jax.tree.map(
        lambda x: next(new).astype(x.dtype) if core.is_floating(x) else x, params
    )


def way(x: jax.Array, began: jax.Array) -> jax.Array:
    """x − began, 0 where they are the same: infinity less itself is no number."""
    return jnp.where(x == began, jnp.zeros_like(x), x - began)


def _zeros(params: core.Params) -> Arrays:
    return tuple(jnp.zeros_like(x) for x in wide_leaves(params))


fed_avg = Correction(
    lambda params, estimator_state: (),
    lambda key_data, params: (),
    lambda prepared, own, mean_own, start, params, count: _zeros(params),
    lambda prepared, params, mean_gradient, estimator_state: (),
)
"""No correction, which is `fzoos` without features: McMahan et al.,
Communication-efficient learning of deep networks from decentralized data, 2017.
arXiv:1602.05629."""

scaffold = Correction(
    lambda params, estimator_state: _zeros(params),
    lambda key_data, params: (),
    lambda prepared, own, mean_own, start, params, count: tuple(
        c - mine for c, mine in zip(mean_own, own, strict=True)
    ),
    lambda prepared, params, mean_gradient, estimator_state: mean_gradient,
)
"""c − cᵢ: Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated
learning, 2020. arXiv:1910.06378, option II: there (x − xᵢ) / (steps · learning_rate)
stands for the mean gradient, which for SGD it is."""


def fed_prox(strength: float) -> Correction:
    """A pull towards the parameters that the round began with.

      term = strength · (xᵢ − x)

    Args:
      strength: At least 0; 0 is `fed_avg`.
    Returns:
      A `Correction` for `federated`.
    Raises:
      TypeError, ValueError: If `strength` is no number of at least 0.
    Cost:
      No function values; nothing is remembered.
    Example:
      >>> correction = fed_prox(0.5)
      >>> print(correction.term((), (), (), jnp.zeros(2), jnp.ones(2), 0))
      (Array([0.5, 0.5], dtype=float32),)
    References:
      Li et al., Federated optimization in heterogeneous networks, 2020.
      arXiv:1812.06127. The gradient of its proximal term.
    """
    hint = "It is by what the way from the server is multiplied."
    validation.non_negative("fed_prox", "strength", strength, hint)

    def term(
        prepared: Any, own: Any, mean_own: Any, start: Any, params: Any, count: Any
    ) -> Arrays:
        del prepared, own, mean_own, count
        pairs = zip(wide_leaves(params), wide_leaves(start), strict=True)
        return tuple(
            jnp.asarray(strength, x.dtype) * way(x, began) for x, began in pairs
        )

    return fed_avg._replace(term=term)


class _Features(NamedTuple):
    """Random waves: φₘ(x) = √(2 / M) · cos(⟨wₘ, x⟩ + bₘ)."""

    frequencies: jax.Array  # (M, dim)
    phases: jax.Array  # (M,)

    def angles(self, points: jax.Array) -> jax.Array:
        """(n, M) for (n, dim) points."""
        product = jnp.dot(points, self.frequencies.T, precision=lax.Precision.HIGHEST)
        return product + self.phases[None]

    def factor(self) -> float:
        return math.sqrt(2 / self.phases.size)

    def gradient(self, weights: jax.Array, x: jax.Array) -> jax.Array:
        """(dim,) of the function Σₘ weightsₘ φₘ at x."""
        slopes = -self.factor() * weights * jnp.sin(self.angles(x[None])[0])
        return jnp.dot(slopes, self.frequencies, precision=lax.Precision.HIGHEST)


def fzoos(
    *,
    num_features: int = 1000,
    length_scale: float = 1.0,
    jitter: float = 1e-6,
    mask: core.Mask = None,
) -> Correction:
    """What the surrogates of all clients know more than that of one.

    At the end of a round a client fits the values in the buffer of its
    `trajectory_estimator` by M random Fourier features, the same for all clients, and
    sends its M weights. With Φ the features at the points of the buffer and y the
    values there, less their mean, over their deviation:

      weights = std(values) · Φᵀ (Φ Φᵀ + jitter · I)⁻¹ y
      ∇sᵢ(x) = −√(2 / M) · Σₘ weightsₘ sin(⟨wₘ, x⟩ + bₘ) wₘ
      term = (∇s(xᵢ) − ∇sᵢ(xᵢ)) / (t + 1)      s with the mean of the clients' weights

    Args:
      num_features: M, at least 1. The error of the kernel falls as 1 / √M.
      length_scale: Distance over which the functions change, for the weights of all
        clients must be of the same features: wₘ ~ N(0, I / length_scale²).
      jitter: As in `trajectory_estimator`.
      mask: That of the estimator.
    Returns:
      A `Correction` for `federated`.
    Raises:
      TypeError, ValueError: If a number is out of its range; in `init`, if the
        estimator is no `trajectory_estimator`, or its mask one of
        another number of elements.
    Cost:
      No function values; M numbers in the state of each client, and M copies of the
      parameters while a round lasts, shared by all clients.
    Example:
      >>> targets = jnp.array([[-1.0], [3.0]])  # Their mean is 1.
      >>> run = radazo.federated.federated(
      ...     lambda x, client: jnp.sum((x - targets[client]) ** 2),
      ...     radazo.trajectory_estimator(num_points=20, num_directions=2),
      ...     optax.sgd(0.1),
      ...     num_clients=2,
      ...     key=0,
      ...     num_local_steps=5,
      ...     correction=fzoos(num_features=100),
      ... )
      >>> state, step = run.init(jnp.zeros(1)), jax.jit(run.round)
      >>> for _ in range(5):
      ...     state, info = step(state)
      >>> print(jnp.round(state.params), info.num_values)
      [1.] 30
    References:
      Shu et al., Federated zeroth-order optimization using trajectory-informed
      surrogate gradients, 2023. arXiv:2308.04077. There a client also looks at points
      of which its surrogate is least certain, after each local step and at the end of a
      round, and fits the 500 points nearest to the server's; the server keeps its
      parameters where the mean did not improve. Here it looks around itself in each
      local step, and that is all.
    """
    api_name = "fzoos"
    hint = "The surrogate is a sum of so many waves; 1000 is a good start."
    validation.integer(api_name, "num_features", num_features, 1, hint)
    hint = "It is the distance between parameters over which the functions change."
    validation.positive(api_name, "length_scale", length_scale, hint)
    hint = "It is the share of noise in the variance of the values."
    validation.non_negative(api_name, "jitter", jitter, hint)

    def init(params: core.Params, estimator_state: Any) -> jax.Array:
        hint = "Its buffer is what the surrogate is fitted to."
        if not isinstance(estimator_state, trajectory.TrajectoryState):
            got = f"the state {type(estimator_state).__name__}"
            rule = "be a `trajectory_estimator`"
            validation.fail("federated", "estimator", rule, got, hint, TypeError)
        layout = flat.layout(api_name, params, mask)
        dim = estimator_state.buffer.points.shape[1]
        if dim != layout.dim:
            rule = "be that of the estimator"
            got = f"one of {layout.dim} elements for points of {dim}"
            hint = "Give both the same mask."
            validation.fail(api_name, "mask", rule, got, hint)
        return jnp.zeros(num_features, layout.dtype)

    def prepare(key_data: jax.Array, params: core.Params) -> _Features:
        layout = flat.layout(api_name, params, mask)
        words = random.fold_in(key_data, jnp.uint32(_FEATURES))
        size, dtype = num_features * layout.dim, layout.dtype
        normal = random.normal(random.fold_in(words, 0), size, dtype)
        key = random.typed(random.fold_in(words, 1))
        phases = jax.random.uniform(key, (num_features,), dtype, maxval=2 * math.pi)
        frequencies = normal.reshape(num_features, layout.dim)
        return _Features(frequencies / jnp.asarray(length_scale, dtype), phases)

    def term(
        prepared: _Features,
        own: jax.Array,
        mean_own: jax.Array,
        start: core.Params,
        params: core.Params,
        count: jax.Array,
    ) -> Arrays:
        del start
        layout = flat.layout(api_name, params, mask)
        x = flat.ravel(layout, params)
        gradient = prepared.gradient(mean_own - own, x)
        gradient = gradient / (count + 1).astype(layout.dtype)
        return wide_leaves(flat.unravel(layout, params, gradient, jnp.uint32(count)))

    def learn(
        prepared: _Features, params: Any, mean_gradient: Any, estimator_state: Any
    ) -> jax.Array:
        del params, mean_gradient
        return _fitted(prepared, estimator_state.buffer, jitter)

    return Correction(init, prepare, term, learn)


def _fitted(
    features: _Features, buffer: gaussian_process.Buffer, jitter: Any
) -> jax.Array:
    """(M,) the weights of the features that give the values of the buffer."""
    filled = gaussian_process.filled(buffer)
    rows = features.factor() * jnp.cos(features.angles(buffer.points))
    rows = jnp.where(filled[:, None], rows, jnp.zeros_like(rows))
    gram = jnp.dot(rows, rows.T, precision=lax.Precision.HIGHEST)
    _, deviation, standard = gaussian_process.standardised(buffer.values, filled)
    factor = gaussian_process.factorized(gram, filled, jitter)
    solved = jax.scipy.linalg.cho_solve((factor, True), standard)
    weights = deviation * jnp.dot(solved, rows, precision=lax.Precision.HIGHEST)
    return jnp.where(jnp.isfinite(weights), weights, jnp.zeros_like(weights))
