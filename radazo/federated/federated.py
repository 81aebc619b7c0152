"""Federated optimization: clients take local steps, a server averages the results.

Clients send only their parameters and the memory of their `Correction`.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, flat, partition, random, validation
from radazo.federated import corrections
from radazo.optimizers import combinators


class FederatedState(NamedTuple):
    """State of a federated run.

    Attributes:
      count: int32 scalar, number of rounds.
      key_data: (2,) uint32, the constant key data of the run.
      params: Parameters of the server.
      num_values: int32 scalar, function values taken by all clients.
      estimators, corrections: States and memories, with a leading axis of clients.
    """

    count: jax.Array
    key_data: jax.Array
    params: core.Params
    num_values: jax.Array
    estimators: Any
    corrections: Any


class FederatedInfo(NamedTuple):
    """Information about a round.

    Attributes:
      values: (num_clients, num_local_steps), the values of the local steps.
      num_values: int32 scalar, function values taken by all clients in the round.
      drift: Float scalar, root mean squared distance of the xᵢ from their mean.
    """

    values: jax.Array
    num_values: jax.Array
    drift: jax.Array


class Federated(NamedTuple):
    """The two pure functions of a federated run.

    Attributes:
      init: `init(params) -> state`.
      round: `round(state, *args) -> (state, info)`; `args` are passed to the function.
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
    """Minimize the mean of the functions of n clients, each known to one client only.

    `jax.vmap` computes all clients at once. In a round, with x the parameters of the
    server, client i sets xᵢ = x and takes its local steps

      gᵢ = estimate(fᵢ, xᵢ) + correction term
      xᵢ ← local_optimizer(gᵢ), from a fresh state

    as `with_estimator` does with the key fold_in(fold_in(key, round), i). Then

      x ← x + learning_rate · Σᵢ sharesᵢ · (xᵢ − x)

    For R-AdaZO on the clients pass `optax.chain(scale_by_radazo(), optax.scale(-0.01))`
    as `local_optimizer`. The states of the estimators are kept from round to round.

    Args:
      client_value_fn: `client_value_fn(params, client, *args)`, the function of one
        client, an int32 scalar: select its data by `data[client]`.
      estimator: Any `Estimator`; each client has its own state of it.
      local_optimizer: Any `optax.GradientTransformation`; None is `optax.adam(0.01)`.
      num_clients, num_local_steps: Clients, and steps of each in a round, at least 1.
      key: Typed key or integer seed of the run.
      correction: Any `Correction`, e.g. `scaffold` or `fzoos()`.
      learning_rate: Rate of the server; 1 sets x to the mean of the xᵢ.
      shares: Weights of the clients in all means; None for equal weights.
    Returns:
      `Federated(init, round)`. Compile `round` with `jax.jit`.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range, or a
        leaf of the parameters is not an array.
    Cost:
      num_clients · num_local_steps estimates per round. The state has one copy of the
      parameters and, per client, the state of the estimator and the memory of the
      correction. A round needs, per client, two more copies, the state of the optimizer
      and the memory of an estimate.
    Example:
      >>> targets = jnp.array([[0.0, 1.0], [4.0, 3.0]])
      >>> value_fn = lambda x, client: jnp.sum((x - targets[client]) ** 2)
      >>> estimator = radazo.orthogonal_estimator(num_directions=2)
      >>> run = federated(value_fn, estimator, optax.sgd(0.1), num_clients=2, key=0)
      >>> state, info = jax.jit(run.round)(run.init(jnp.zeros(2)))
      >>> print(jnp.round(state.params), info.num_values)  # towards the mean, [2, 2]
      [2. 2.] 60
    """
    api_name = "federated"
    hint = "It takes the parameters and the number of a client."
    validation.function(api_name, "client_value_fn", client_value_fn, hint)
    validation.check(api_name, estimator=estimator)
    hint = "Pass `radazo.federated.scaffold` or, as a call, `radazo.federated.fzoos()`."
    kind = corrections.Correction
    validation.instance(api_name, "correction", correction, kind, hint)
    hint = "Clients are numbered from 0."
    validation.integer(api_name, "num_clients", num_clients, 1, hint)
    hint = "It is the number of steps of a client in a round."
    validation.integer(api_name, "num_local_steps", num_local_steps, 1, hint)
    hint = "1 sets the parameters to the mean over the clients."
    validation.positive(api_name, "learning_rate", learning_rate, hint)
    optimizer = optax.adam(0.01) if local_optimizer is None else local_optimizer
    weights = _normalize(api_name, shares, num_clients)
    options = client_value_fn, estimator, optimizer, num_local_steps, correction
    words = random.key_data(api_name, key)

    def init(params: core.Params) -> FederatedState:
        # The whole state is traced.
        others = [x for x in jax.tree.leaves(params) if not partition.split(x)[0]]
        if others:
            hint = "Close over constants, or make them arrays."
            got = repr(others[0])[:200]
            validation.fail(api_name, "params", "be arrays", got, hint, TypeError)
        estimator_state = estimator.init(params)
        own = estimator_state, correction.init(params, estimator_state)
        states = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * num_clients), own)
        start = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        count, num_values = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        key_data = jnp.array(words, copy=True)
        return FederatedState(count, key_data, start, num_values, *states)

    def one_round(
        state: FederatedState, *args: Any
    ) -> tuple[FederatedState, FederatedInfo]:
        reached, values, counts, *states = _clients(state, args, weights, *options)
        params, drift = _average(weights, learning_rate, state.params, reached)
        num_values = jnp.sum(counts, dtype=jnp.int32)
        total = combinators.safe_add(state.num_values, num_values)
        count = jnp.asarray(optax.safe_increment(state.count))
        state = FederatedState(count, state.key_data, params, total, *states)
        return state, FederatedInfo(values, num_values, drift)

    return Federated(init, one_round)


def _clients(
    state: FederatedState,
    args: tuple[Any, ...],
    weights: np.ndarray,
    client_value_fn: core.ValueFn,
    estimator: core.Estimator,
    local_optimizer: optax.GradientTransformation,
    num_local_steps: int,
    correction: corrections.Correction,
) -> Any:
    """Return the parameters, values, number of values and states of all clients."""
    start = state.params
    shared = correction.prepare(state.key_data, start)
    mean = jax.tree.map(lambda x: _mean(weights, x), state.corrections)
    words = random.fold_in(state.key_data, state.count)

    def run(client: jax.Array, inner: Any, memory: Any) -> tuple[Any, ...]:
        term = partial(correction.term, shared, memory, mean, start)
        corrected = _with_correction(estimator, term, inner)
        key = random.typed(random.fold_in(words, client))
        optimizer: Any = combinators.with_estimator(corrected, local_optimizer, key)

        def value_fn(params: core.Params) -> Any:
            return client_value_fn(params, client, *args)

        def step(carry: tuple[core.Params, Any], _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            updates, state = optimizer.update(None, state, params, value_fn=value_fn)
            return (core.apply_updates(updates, params), state), state.last_value

        carry = start, optimizer.init(start)
        (params, last), values = lax.scan(step, carry, length=num_local_steps)
        after = last.estimator
        divisor = jnp.maximum(after.num_valid, 1)
        mean_gradient = tuple(x / divisor.astype(x.dtype) for x in after.total)
        learned = correction.learn(shared, params, mean_gradient, after.estimator)
        # A client without a finite value keeps its memory.
        memory = optax.tree.where(after.num_valid > 0, learned, memory)
        reached = corrections.wide_leaves(params)
        return reached, values, last.num_values, after.estimator, memory

    clients = jnp.arange(len(weights), dtype=jnp.int32)
    return jax.vmap(run)(clients, state.estimators, state.corrections)


class _CorrectedState(NamedTuple):
    count: jax.Array  # Local steps.
    estimator: Any
    num_valid: jax.Array  # Local steps with a finite slope.
    total: corrections.Arrays  # Sum of the estimates.


def _with_correction(
    estimator: core.Estimator, term: Callable[..., corrections.Arrays], inner: Any
) -> core.Estimator:
    """Return `estimator`, with the state `inner`, plus `term` in its gradients."""
    zero = jnp.zeros((), jnp.int32)

    def estimate(step: core.Step, state: _CorrectedState, *seen: Any) -> core.Estimate:
        found = estimator.estimate(step, state.estimator, *seen)
        layout, params = step.layout, step.params
        gradient = flat.unravel(layout, params, found.gradient, found.opaque_index)
        estimates = corrections.wide_leaves(gradient)
        sums = map(operator.add, estimates, term(params, state.count))
        gradient = flat.ravel(layout, corrections.replace(gradient, sums))
        total = tuple(map(operator.add, state.total, estimates))
        num_valid = state.num_valid + jnp.any(found.info.kept).astype(jnp.int32)
        state = _CorrectedState(state.count + 1, found.state, num_valid, total)
        return found._replace(gradient=gradient, state=state)

    return core.Estimator(
        estimator.api_name,
        lambda params: _CorrectedState(zero, inner, zero, corrections.zeros(params)),
        lambda key, params, state: estimator.step(key, params, state.estimator),
        lambda step, state: estimator.queries(step, state.estimator),
        estimate,
    )


def _mean(weights: np.ndarray, values: jax.Array) -> jax.Array:
    """Return the weighted mean over a leading axis of clients."""
    by = jnp.asarray(weights, values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(by > 0, by * values, jnp.zeros_like(values)), axis=0)


def _average(
    weights: np.ndarray, learning_rate: Any, start: core.Params, reached: Any
) -> tuple[core.Params, jax.Array]:
    """Return the server's next parameters and the drift of the clients."""
    new, squares = [], jnp.zeros((), jnp.float32)
    for x, clients in zip(corrections.wide_leaves(start), reached, strict=True):
        moves = corrections.displacement(clients, x[None])
        mean = _mean(weights, moves)
        new.append(x + jnp.asarray(learning_rate, x.dtype) * mean)
        distances = _mean(weights, jnp.square(moves - mean[None]))
        squares = squares + jnp.sum(distances).astype(jnp.float32)
    return corrections.replace(start, new), jnp.sqrt(squares)


def _normalize(api_name: str, shares: Any, num_clients: int) -> np.ndarray:
    """Return the weights of the clients, normalized to sum to 1."""
    try:
        weights = np.ones(num_clients) if shares is None else np.asarray(shares, float)
    except (TypeError, ValueError):
        weights = np.zeros(0)
    fits = weights.shape == (num_clients,) and np.all(weights >= 0)
    if not (fits and 0 < np.sum(weights) < np.inf):
        rule = f"be {num_clients} numbers of at least 0, one for each client, not all 0"
        hint = "They are the weights of the clients in the mean; None makes them equal."
        validation.fail(api_name, "shares", rule, repr(shares), hint)
    return weights / np.sum(weights)
