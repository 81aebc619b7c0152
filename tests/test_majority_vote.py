"""Majority votes are what they say, and a wild value counts as one vote."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained

import radazo

D, K, SMOOTHING = 5, 7, 0.1
SLOPE = np.array([1.0, -2.0, 0.5, 3.0, 0.0])
START = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([[0.3, -0.7]])}
SAMPLERS = {
    name: getattr(radazo.directions, name)
    for name in ("sphere", "gaussian", "rademacher", "coordinate", "orthogonal")
}


def value_fn(params):
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    return jnp.sum(jnp.sin(flat)) * flat[0] + flat[1] ** 2 * flat[4]


def flat_of(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def start(dtype=None):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), START)


def estimated(estimator, params, fn=value_fn):
    estimate = jax.jit(
        lambda params: radazo.estimate(estimator, 4, fn, params, estimator.init(params))
    )
    return estimate(params)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.usefixtures("x64")
def test_a_vote_is_counted_as_written(sampler):
    num = 4 if sampler is radazo.directions.orthogonal else K
    estimator = radazo.majority_vote_estimator(
        sampler, num_directions=num, smoothing=SMOOTHING, chunk_size=3
    )
    value, gradient, state, info = estimated(estimator, start())
    us = radazo.directions.sample_directions(
        4, jnp.zeros(D), sampler, num_directions=num
    )
    x, lead = flat_of(START), np.zeros(D)
    for u in np.asarray(us):
        difference = value_fn(x + SMOOTHING * u) - value_fn(x)
        lead += np.sign(difference) * np.sign(u) / num
    np.testing.assert_allclose(flat_of(gradient), lead, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(value, value_fn(x), rtol=1e-14)
    assert int(info.num_values) == num + 1
    assert np.isnan(info.factor)
    assert np.isnan(info.squared_norm)
    assert int(state.count) == 1


@pytest.mark.parametrize(
    "sampler", [radazo.directions.sphere, radazo.directions.gaussian]
)
def test_the_mean_vote_is_an_arcsine(sampler):
    # Of two normals correlated as aᵢ / ‖a‖, the mean product of signs.
    num = 20_000
    estimator = radazo.majority_vote_estimator(
        sampler, num_directions=num, chunk_size=2000
    )
    slope = SLOPE.astype(np.float32)
    _, gradient, _, _ = estimated(estimator, jnp.zeros(D), lambda x: jnp.dot(slope, x))
    expected = 2 / np.pi * np.arcsin(SLOPE / np.linalg.norm(SLOPE))
    error = np.sqrt((1 - expected**2) / num)
    assert np.all(np.abs(np.asarray(gradient) - expected) < 4 * error)


@pytest.mark.usefixtures("x64")
def test_sign_descent_by_votes_is_the_sign_of_the_sum_of_signs():
    estimator = radazo.majority_vote_estimator(num_directions=K, smoothing=SMOOTHING)
    optimizer = radazo.zo_signsgd(0.1, estimator, key=9)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate(
            [x.ravel() for x in jax.tree.leaves(params)]
        )

    run = jax.jit(
        lambda: jax.lax.scan(step, (start(), optimizer.init(start())), length=5)[1]
    )
    ours, x = run(), flat_of(START)
    for t in range(5):
        key = jax.random.fold_in(jax.random.key(9), t)
        us = radazo.directions.sample_directions(key, jnp.zeros(D), num_directions=K)
        signs = [
            np.sign((value_fn(x + SMOOTHING * u) - value_fn(x)) * u)
            for u in np.asarray(us)
        ]
        x = x - 0.1 * np.sign(np.sum(signs, axis=0))
        np.testing.assert_allclose(ours[t], x, rtol=1e-12)


def test_a_wild_value_has_one_vote_and_one_that_is_not_finite_none():
    def cliff(height):
        return lambda x: jnp.where(x[0] > 0.5, jnp.float32(height), jnp.sum(x))

    estimator = radazo.majority_vote_estimator(num_directions=8, smoothing=1.0)
    votes = {h: estimated(estimator, jnp.zeros(2), cliff(h)) for h in (1.0, 1e30)}
    np.testing.assert_array_equal(votes[1.0][1], votes[1e30][1])
    _, gradient, _, info = estimated(estimator, jnp.zeros(2), cliff(jnp.inf))
    assert 0 < np.sum(info.kept) < 8
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_a_mask_and_integers(dtype):
    params = start(dtype) | {"c": jnp.arange(2), "d": None}
    mask = {"a": True, "b": False, "c": True, "d": True}
    estimator = radazo.majority_vote_estimator(mask=mask)
    _, gradient, _, _ = estimated(estimator, params, lambda p: jnp.sum(p["a"]))
    assert jax.tree.map(jnp.result_type, gradient) == jax.tree.map(
        jnp.result_type, params
    )
    assert np.any(gradient["a"])
    assert not np.any(gradient["b"])


def test_a_distribution_by_name_is_explained():
    explained(
        Mistake(
            lambda: radazo.majority_vote_estimator("sphere"),
            TypeError,
            "majority_vote_estimator(sampler",
            "be a DirectionSampler",
            "'sphere'.",
            "Pass a sampler, e.g. `radazo.directions.sphere`.",
        )
    )
