"""Prior-guided estimates: the paper in NumPy, projections in closed form, a descent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained

import radazo

K, D, SMOOTHING = 3, 6, 0.1
C = np.linspace(0.5, 1.5, D)
PRIORS = {
    "last_estimate": radazo.estimators.last_estimate,
    "last_step": radazo.estimators.last_step,
    "momentum": radazo.estimators.momentum_prior(0.7),
}


def f(x):
    """A function of all coordinates of a NumPy or JAX vector jointly, of order one."""
    return ((x - 1) ** 2 * C).sum() / 2 + x.sum() ** 4 / 50 + x[0] * x[5]


def gram_schmidt(rows):
    done = []
    for row in rows:
        rest = row - sum((row @ u) * u for u in done)
        done.append(rest / np.sqrt(rest @ rest))
    return np.array(done)


def gaussians(key, num_directions=K, dim=D):
    draw = functools.partial(
        radazo.directions.sample_directions,
        params=jnp.zeros(dim),
        sampler=radazo.directions.gaussian,
        num_directions=num_directions,
    )
    return np.array(jax.jit(draw)(key))


# The paper, arXiv:2107.10110, with the directions that radazo draws.


def paper_run(name, key, num_steps):
    x, p, history = np.zeros(D), None, []
    for t in range(num_steps):
        rows = gaussians(jax.random.fold_in(key, t))
        if p is not None:
            rows[0] = p
        us = gram_schmidt(rows)
        g = sum((f(x + SMOOTHING * u) - f(x)) / SMOOTHING * u for u in us)
        new = x - 0.1 * C * g
        if name == "last_estimate":
            p = g
        elif name == "last_step":
            p = new - x
        else:
            p = 0.7 * (np.zeros(D) if p is None else p) + 0.3 * g
        x = new
        history.append((x, g))
    return history


def radazo_run(prior, key, num_steps):
    estimator = radazo.prior_guided_estimator(
        num_directions=K, prior=prior, smoothing=SMOOTHING
    )

    def step(carry, t):
        x, state = carry
        key_t = jax.random.fold_in(key, t)
        _, g, state, _ = radazo.estimate(estimator, key_t, f, x, state)
        x = x - 0.1 * C * g  # Not along g: the last step is not the last estimate.
        return (x, state), (x, g)

    x = jnp.zeros(D)
    run = lambda x: jax.lax.scan(step, (x, estimator.init(x)), jnp.arange(num_steps))
    return jax.jit(run)(x)[1]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.usefixtures("x64")
def test_an_estimate_is_the_paper_transcribed(name):
    key = jax.random.key(5)
    ours = radazo_run(PRIORS[name], key, num_steps=8)
    xs, gs = zip(*paper_run(name, key, num_steps=8), strict=True)
    np.testing.assert_allclose(ours[0], xs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[1], gs, rtol=0, atol=1e-11)


# One estimate of a linear function, from a memory that is given.

A = np.array([1.0, -2.0, 0.5, 3.0, -1.0, 0.25])


def linear(x):
    return x @ jnp.asarray(A, x.dtype)


def estimate_from(vector, num_directions=K, value_fn=linear):
    """(gradient, memory after it, info) at 0, with `vector` for the last estimate."""
    estimator = radazo.prior_guided_estimator(num_directions=num_directions)
    x = jnp.zeros(D, jnp.asarray(vector).dtype)
    state = estimator.init(x)
    memory = state.memory._replace(known=jnp.asarray(True), vector=jnp.asarray(vector))
    return compiled(num_directions, value_fn)(x, state._replace(memory=memory))


@functools.cache
def compiled(num_directions, value_fn):
    estimator = radazo.prior_guided_estimator(num_directions=num_directions)

    def run(x, state):
        _, gradient, state, info = radazo.estimate(estimator, 3, value_fn, x, state)
        return gradient, state.memory.vector, info

    return jax.jit(run)


PRIOR = np.array([0.5, -1.0, 0.0, 2.0, 1.0, 1.0])


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("num_directions", [2, 4, D])
@pytest.mark.usefixtures("x64")
def test_an_estimate_is_the_gradient_projected_on_the_span(num_directions):
    rows = gaussians(3, num_directions)
    rows[0] = PRIOR
    basis, _ = np.linalg.qr(rows.T)
    gradient, _, info = estimate_from(PRIOR, num_directions, linear)
    np.testing.assert_allclose(gradient, basis @ basis.T @ A, rtol=0, atol=1e-11)
    np.testing.assert_allclose(info.slopes[0], A @ PRIOR / np.linalg.norm(PRIOR))
    np.testing.assert_allclose(np.sum(info.slopes**2), gradient @ A)
    np.testing.assert_allclose(info.factor, num_directions)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_length_of_a_guess_changes_nothing(size):
    vector = PRIOR.astype(np.float32)
    expected, _, _ = estimate_from(vector, K, linear)
    gradient, _, _ = estimate_from(np.float32(size) * vector, K, linear)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=2e-3)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.usefixtures("x64")
def test_without_a_guess_all_directions_are_random(bad):
    gradient, memory, _ = estimate_from(np.full(D, bad), K, linear)
    us = gram_schmidt(gaussians(3))
    np.testing.assert_allclose(gradient, us.T @ us @ A, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(memory, gradient)


def wall(x):
    """⟨A, x⟩ where the first coordinate is not positive, and NaN beyond."""
    return jnp.where(x[0] > 0, jnp.nan, linear(x))


@pytest.mark.usefixtures("x64")
def test_directions_without_a_finite_value_leave_the_sum_over_the_rest():
    rows = gaussians(3, 5)
    rows[0] = PRIOR
    us = gram_schmidt(rows)
    kept = us[:, 0] <= 0
    assert not kept[0]
    assert np.sum(kept) > 1
    gradient, memory, info = estimate_from(PRIOR, 5, wall)
    np.testing.assert_array_equal(info.kept, kept)
    np.testing.assert_allclose(gradient, us[kept].T @ us[kept] @ A, rtol=0, atol=1e-11)
    assert float(info.factor) == np.sum(kept)
    np.testing.assert_array_equal(memory, gradient)


def nowhere(x):
    return jnp.nan * linear(x)


def test_where_nothing_is_finite_the_memory_stays():
    vector = PRIOR.astype(np.float32)
    gradient, memory, info = estimate_from(vector, K, nowhere)
    np.testing.assert_array_equal(gradient, np.zeros(D))
    np.testing.assert_array_equal(memory, vector)
    assert not np.any(info.kept)


def test_what_is_not_finite_is_not_remembered():
    # A rule that sends one parameter to infinity shows in the step, not in the memory.
    estimator = radazo.prior_guided_estimator(
        num_directions=K, prior=radazo.estimators.last_step
    )
    state = estimator.init(jnp.zeros(D))

    @jax.jit
    def run(x, state):
        return radazo.estimate(estimator, 3, lambda x: x[0], x, state)[1:3]

    for x in (jnp.zeros(D), jnp.zeros(D).at[2].set(jnp.inf), jnp.ones(D)):
        gradient, state = run(x, state)
        assert np.all(np.isfinite(gradient))
        assert np.all(np.isfinite(state.memory.vector))


def test_the_state_is_one_vector_in_float32_whatever_the_prior():
    params = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones((), jnp.float16), "c": 3}
    kinds = {
        str(jax.eval_shape(radazo.prior_guided_estimator(prior=prior).init, params))
        for prior in PRIORS.values()
    }
    assert len(kinds) == 1
    state = radazo.prior_guided_estimator().init(params)
    assert (state.memory.vector.shape, state.memory.vector.dtype) == ((5,), jnp.float32)
    assert sum(x.size for x in jax.tree.leaves(state)) == 5 + 2


# A descent beside that with random directions alone.


@functools.cache
def descent(name):
    """Values and cosines of 300 steps of 1 / L, 6 values each, from each of 4 keys."""
    dim, num_directions = 64, 5
    hessian = jnp.asarray(np.geomspace(1, 1e-2, dim), jnp.float32)
    value_fn = lambda x: jnp.sum(hessian * x**2) / 2
    options = {"num_directions": num_directions, "smoothing": 1e-3}
    if name == "random":
        estimator = radazo.orthogonal_estimator(**options)
        rate = num_directions / dim  # Its estimate is the projection times d / K.
    else:
        estimator = radazo.prior_guided_estimator(prior=PRIORS[name], **options)
        rate = 1.0

    def run(key):
        def step(carry, t):
            x, state = carry
            out = radazo.estimate(
                estimator, jax.random.fold_in(key, t), value_fn, x, state
            )
            _, gradient, state, _ = out
            cosine = radazo.diagnostics.cosine_similarity(gradient, hessian * x)
            return (x - rate * gradient, state), (value_fn(x), cosine)

        x = jnp.ones(dim)
        return jax.lax.scan(step, (x, estimator.init(x)), jnp.arange(300))[1]

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", PRIORS)
def test_a_guess_beats_a_random_direction_on_a_quadratic_at_equal_values(name):
    values, cosines = descent(name)
    random_values, random_cosines = descent("random")
    assert np.all(values[:, -1] < 0.5 * random_values[:, -1])
    assert np.mean(cosines) > 1.2 * np.mean(random_cosines)


MISTAKES = {
    "a function for a prior": Mistake(
        lambda: radazo.prior_guided_estimator(prior=radazo.estimators.momentum_prior),
        TypeError,
        "prior_guided_estimator(prior",
        "be a Prior",
        "<function momentum",
        "Pass a prior, e.g. `radazo.estimators.last_estimate`.",
    ),
    "a guess and nothing else": Mistake(
        lambda: radazo.prior_guided_estimator(num_directions=1),
        ValueError,
        "prior_guided_estimator(num_directions",
        "be at least 2",
        "1.",
        "10 is a good start.",
    ),
    "more directions than dimensions": Mistake(
        lambda: estimate_from(PRIOR.astype(np.float32), D + 1, linear),
        ValueError,
        "prior_guided_estimator(num_directions",
        f"be at most the number of perturbed elements, {D}",
        f"{D + 1}.",
        "There are no more orthogonal directions than dimensions.",
    ),
    "an average that never forgets": Mistake(
        lambda: radazo.estimators.momentum_prior(1.0),
        ValueError,
        "momentum_prior(b1",
        "be in [0, 1)",
        "1.0.",
        "It is the share of the past that a moment keeps at each step.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_explained(mistake):
    explained(mistake)


def test_value_and_grad_would_forget_what_it_remembers():
    estimator = radazo.prior_guided_estimator()
    with pytest.raises(ValueError, match="be memoryless"):
        radazo.value_and_grad(linear, estimator)


def test_it_guides_an_adaptive_rule_inside_an_optax_wrapper():
    estimator = radazo.prior_guided_estimator(
        num_directions=4, prior=radazo.estimators.last_step
    )
    optimizer = radazo.with_estimator(
        estimator, optax.apply_if_finite(optax.adam(0.1), 3), key=0
    )

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(None, state, x, value_fn=f)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.zeros(D)
    run = lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=60)[0]
    with jax.numpy_dtype_promotion("standard"):
        reached, state = jax.jit(run)(x)
    assert f(reached) < 0.3 * f(x)
    assert state.num_values == 60 * 5
