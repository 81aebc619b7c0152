"""Federated optimization: clients that step on their own, and a server that averages.

In a round every client takes some steps of `with_estimator` from the server's
parameters, with a `Correction` added to its gradient estimates; the server takes the
mean of what they reached. A client sends its parameters and what its correction has
learned; its data and its values stay.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, partition, random, validation
from radazo.federated import corrections
from radazo.optimizers import combinators


class FederatedState(NamedTuple):
    """State of a federated run.

    Attributes:
      count: int32 scalar, rounds so far.
      key_data: (2,) uint32, the words of the key of the run. It never changes.
      params: The parameters of the server.
      num_values: int32 scalar, function values so far, of all clients.
      estimators: States of the estimators, with a leading axis of clients.
      corrections: What the clients remember, with a leading axis of clients.
    """

    count: jax.Array
    key_data: jax.Array
    params: core.Params
    num_values: jax.Array
    estimators: Any
    corrections: Any


class FederatedInfo(NamedTuple):
    """What a round saw.

    Attributes:
      values: (num_clients, num_local_steps), the values that the local steps returned.
      num_values: int32 scalar, function values taken, of all clients.
      drift: Float scalar, the root of the mean squared distance of the parameters that
        clients reached from the mean of them.
    """

    values: jax.Array
    num_values: jax.Array
    drift: jax.Array


class Federated(NamedTuple):
    """A federated run: two pure functions.

    Attributes:
      init: `init(params) -> state`.
      round: `round(state, *args) -> (state, info)`; `args` go on to the function.
    """

    init: Callable[[core.Params], FederatedState]
    round: Callable[..., tuple[FederatedState, FederatedInfo]]


def federated(
    client_value_fn: Callable[..., Any],
    estimator: core.Estimator,
    local_optimizer: optax.GradientTransformation | None = None,
    *,
    num_clients: int,
    key: core.Key,
    num_local_steps: int = 10,
    correction: corrections.Correction = corrections.fed_avg,
    learning_rate: float = 1.0,
    shares: Sequence[float] | None = None,
) -> Federated:
    """Minimize the mean of functions that no two of n clients know.

    All clients are computed at once by `jax.vmap`. In a round, with x the parameters of
    the server, client i sets xᵢ = x and takes its local steps

      gᵢ = estimate(fᵢ, xᵢ) + correction term
      xᵢ ← local_optimizer(gᵢ), from a fresh state

    as `with_estimator` does with the key fold_in(fold_in(key, round), i). Then

      x ← x + learning_rate · Σᵢ sharesᵢ · (xᵢ − x)

    One client is a run of `with_estimator`, whose optimizer begins anew at each round.
    The states of the estimators live on from round to round. R-AdaZO on the clients is
    `local_optimizer=chain(scale_by_radazo(), scale(-0.01))`, whose moments see the
    gradient with its correction and begin anew at each round.

    Args:
      client_value_fn: `client_value_fn(params, client, *args)`, the function of one
        client, an int32 scalar: pick its data as `data[client]`.
      estimator: Any `Estimator`, of which each client has its own.
      local_optimizer: Any `optax.GradientTransformation`; None is `optax.adam(0.01)`.
      num_clients: n, at least 1.
      key: Typed key or integer seed of the run.
      num_local_steps: Steps of a client in a round, at least 1.
      correction: `fed_avg`, `fed_prox(strength)`, `scaffold`, `fzoos()`, or a
        `Correction` of your own.
      learning_rate: Of the server; 1 takes the mean of the clients' parameters.
      shares: The weights of the clients in all means, divided by their sum; None for
        equal ones.
    Returns:
      `Federated(init, round)`. Put `jax.jit` around `round`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range; in
        `init`, if a leaf of the parameters is no array.
    Cost:
      num_clients · num_local_steps times the function values of the estimator in a
      round. The state has one copy of the parameters, and for each client the state of
      the estimator and what the correction remembers; a round holds for each client two
      more copies, the state of the optimizer, and what an estimate takes.
    Example:
      >>> targets = jnp.array([[0.0, 1.0], [4.0, 3.0]])
      >>> run = federated(
      ...     lambda x, client: jnp.sum((x - targets[client]) ** 2),
      ...     radazo.orthogonal_estimator(num_directions=2),
      ...     optax.sgd(0.1),
      ...     num_clients=2,
      ...     key=0,
      ... )
      >>> state, info = jax.jit(run.round)(run.init(jnp.zeros(2)))
      >>> print(jnp.round(state.params), info.num_values)  # towards the mean, [2, 2]
      [2. 2.] 60
    References:
      McMahan et al., Communication-efficient learning of deep networks from
      decentralized data, 2017. arXiv:1602.05629. With `trajectory_estimator` and
      `fzoos`: Shu et al., Federated zeroth-order optimization using
      trajectory-informed surrogate gradients, 2023. arXiv:2308.04077.
    """
    api_name = "federated"
    _check(api_name, client_value_fn, estimator, correction)
    hint = "Clients are numbered from 0 on."
    validation.integer(api_name, "num_clients", num_clients, 1, hint)
    hint = "A client takes so many steps of its own in a round."
    validation.integer(api_name, "num_local_steps", num_local_steps, 1, hint)
    hint = "1 takes the mean of the parameters that clients reached."
    validation.positive(api_name, "learning_rate", learning_rate, hint)
    options = _Options(
        estimator,
        optax.adam(0.01) if local_optimizer is None else local_optimizer,
        num_local_steps,
        correction,
        learning_rate,
        _normalized(api_name, shares, num_clients),
    )
    words = random.key_data(api_name, key)

    def init(params: core.Params) -> FederatedState:
        def for_each(x: Any) -> jax.Array:
            return jnp.stack([jnp.asarray(x)] * num_clients)

        _check_arrays(api_name, params)
        first = estimator.init(params)
        return FederatedState(
            count=jnp.zeros((), jnp.int32),
            key_data=jnp.array(words, copy=True),
            params=jax.tree.map(lambda x: jnp.array(x, copy=True), params),
            num_values=jnp.zeros((), jnp.int32),
            estimators=jax.tree.map(for_each, first),
            corrections=jax.tree.map(for_each, correction.init(params, first)),
        )

    def one_round(
        state: FederatedState, *args: Any
    ) -> tuple[FederatedState, FederatedInfo]:
        def value_fn(params: core.Params, client: jax.Array) -> Any:
            return client_value_fn(params, client, *args)

        reached, clients = _clients(options, value_fn, state)
        params, drift = _averaged(state.params, reached, options)
        taken = jnp.sum(clients.num_values, dtype=jnp.int32)
        state = FederatedState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            key_data=state.key_data,
            params=params,
            num_values=combinators.safe_add(state.num_values, taken),
            estimators=clients.estimator,
            corrections=clients.own,
        )
        return state, FederatedInfo(clients.values, taken, drift)

    return Federated(init, one_round)


class _Options(NamedTuple):
    estimator: core.Estimator
    local_optimizer: optax.GradientTransformation
    num_local_steps: int
    correction: corrections.Correction
    learning_rate: Any
    weights: np.ndarray


class _Client(NamedTuple):
    """What a client has at the end of a round, beside its parameters."""

    estimator: Any
    own: Any
    values: jax.Array
    num_values: jax.Array


def _clients(
    options: _Options, value_fn: Callable[..., Any], state: FederatedState
) -> tuple[corrections.Arrays, _Client]:
    """What all clients reach in a round, and have then."""
    start, correction = state.params, options.correction
    prepared = correction.prepare(state.key_data, start)
    mean_own = jax.tree.map(lambda x: _mean(options.weights, x), state.corrections)
    words = random.fold_in(state.key_data, state.count)

    def run(client: jax.Array, inner: Any, own: Any) -> tuple[Any, _Client]:
        def term(params: core.Params, count: jax.Array) -> corrections.Arrays:
            return correction.term(prepared, own, mean_own, start, params, count)

        reached, last, values = _local_steps(
            combinators.with_estimator(
                _corrected(options.estimator, term, inner),
                options.local_optimizer,
                random.typed(random.fold_in(words, client)),
            ),
            lambda params: value_fn(params, client),
            start,
            options.num_local_steps,
        )
        after = last.estimator
        number = jnp.maximum(after.num_seen, 1)
        mean_gradient = tuple(x / number.astype(x.dtype) for x in after.total)
        learnt = correction.learn(prepared, reached, mean_gradient, after.estimator)
        # A client that saw nothing has learnt nothing.
        own = jax.tree.map(
            lambda new, old: jnp.where(after.num_seen > 0, new, old), learnt, own
        )
        done = _Client(after.estimator, own, values, last.num_values)
        return corrections.wide_leaves(reached), done

    clients = jnp.arange(len(options.weights), dtype=jnp.int32)
    return jax.vmap(run)(clients, state.estimators, state.corrections)


def _local_steps(
    optimizer: Any,
    value_fn: core.ValueFn,
    start: core.Params,
    num_local_steps: int,
) -> tuple[core.Params, Any, jax.Array]:
    """The parameters reached, the optimizer's state, and the value of each step."""

    def step(carry: tuple[core.Params, Any], _: None) -> tuple[Any, jax.Array]:
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return (core.moved(updates, params), state), state.last_value

    carry = start, optimizer.init(start)
    (reached, last), values = lax.scan(step, carry, length=num_local_steps)
    return reached, last, values


class _CorrectedState(NamedTuple):
    count: jax.Array  # Local steps so far.
    estimator: Any
    num_seen: jax.Array  # Of these, those that saw a finite value.
    total: corrections.Arrays  # The sum of the estimates.


def _corrected(
    estimator: core.Estimator,
    term: Callable[[core.Params, jax.Array], corrections.Arrays],
    inner: Any,
) -> core.Estimator:
    """The estimator, from this state on, with the term added to its gradient."""

    def init(params: core.Params) -> _CorrectedState:
        total = tuple(jnp.zeros_like(x) for x in corrections.wide_leaves(params))
        zero = jnp.zeros((), jnp.int32)
        return _CorrectedState(zero, inner, zero, total)

    def estimate(
        key: core.Key,
        value_fn: core.ValueFn,
        params: core.Params,
        state: Any,
        *,
        has_aux: bool = False,
    ) -> tuple[jax.Array, core.Params, Any, core.EstimateInfo]:
        value, gradient, after, info = estimator.estimate(
            key, value_fn, params, state.estimator, has_aux=has_aux
        )
        estimates = corrections.wide_leaves(gradient)
        terms = term(params, state.count)
        total = (x + g for x, g in zip(state.total, estimates, strict=True))
        gradient = corrections.replaced(
            gradient, (g + c for g, c in zip(estimates, terms, strict=True))
        )
        num_seen = state.num_seen + jnp.any(info.kept).astype(jnp.int32)
        state = _CorrectedState(state.count + 1, after, num_seen, tuple(total))
        return value, gradient, state, info

    return core.Estimator(init, estimate)


def _mean(weights: np.ndarray, values: jax.Array) -> jax.Array:
    """The weighted mean over a leading axis of clients."""
    by = jnp.asarray(weights, values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(by > 0, by * values, jnp.zeros_like(values)), axis=0)


def _averaged(
    start: core.Params,
    reached: corrections.Arrays,
    options: _Options,
) -> tuple[core.Params, jax.Array]:
    """The server's next parameters, and how far the clients are apart."""
    began = corrections.wide_leaves(start)
    moves = [
        corrections.way(x, first[None]) for x, first in zip(reached, began, strict=True)
    ]
    means = [_mean(options.weights, move) for move in moves]
    params = corrections.replaced(
        start,
        (
            x + jnp.asarray(options.learning_rate, x.dtype) * move
            for x, move in zip(began, means, strict=True)
        ),
    )
    squares = jnp.zeros((), jnp.float32)
    for move, mean in zip(moves, means, strict=True):
        apart = _mean(options.weights, jnp.square(move - mean[None]))
        squares = squares + jnp.sum(apart).astype(jnp.float32)
    return params, jnp.sqrt(squares)


def _check(
    api_name: str, client_value_fn: Any, estimator: Any, correction: Any
) -> None:
    hint = "It takes the parameters and the number of a client."
    validation.function(api_name, "client_value_fn", client_value_fn, hint)
    hint = "Pass `radazo.trajectory_estimator()`, say: a call, not the function."
    validation.instance(api_name, "estimator", estimator, core.Estimator, hint)
    hint = (
        "Pass `radazo.federated.scaffold`, say, or `radazo.federated.fzoos()`: a call."
    )
    validation.instance(
        api_name, "correction", correction, corrections.Correction, hint
    )


def _check_arrays(api_name: str, params: core.Params) -> None:
    """All leaves are arrays: the state is traced as a whole."""
    others = [x for x in jax.tree.leaves(params) if not partition.split(x)[0]]
    if others:
        got = repr(others[0])[:200]
        hint = "Close over what is constant, or make it an array."
        validation.fail(api_name, "params", "be arrays", got, hint, TypeError)


def _normalized(api_name: str, shares: Any, num_clients: int) -> np.ndarray:
    """The weights of the clients, whose sum is 1."""
    try:
        weights = np.ones(num_clients) if shares is None else np.asarray(shares, float)
    except (TypeError, ValueError):
        weights = np.zeros(0)
    fits = weights.shape == (num_clients,) and np.all(weights >= 0)
    if not (fits and 0 < np.sum(weights) < np.inf):
        validation.fail(
            api_name,
            "shares",
            f"be {num_clients} numbers of at least 0, one a client, not all 0",
            repr(shares),
            "They are the weights of the clients in the mean; None makes them equal.",
        )
    return weights / np.sum(weights)
