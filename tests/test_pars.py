"""PARS and ARS: the paper in NumPy, letter by letter, and what acceleration brings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo

GUESSES = {"pars": radazo.estimators.last_estimate, "ars": None}


def trajectory(optimizer, value_fn, x, num_steps):
    """The parameters after each step and the last state, in one program."""

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(None, state, x, value_fn=value_fn)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, state.last_value)

    def run(x):
        return jax.lax.scan(step, (x, optimizer.init(x)), length=num_steps)

    (_, state), (xs, values) = jax.jit(run)(x)
    return xs, values, state


# The paper, arXiv:2107.10110, with τ = 0, in its letters.

D, K, L, MU, NUM_STEPS = 8, 3, 1.0, 1e-2, 50
H = np.geomspace(1, 0.1, D)


def f(x):
    return (H * x * x).sum() / 2


def gram_schmidt(rows):
    done = []
    for row in rows:
        rest = row - sum((row @ u) * u for u in done)
        done.append(rest / np.sqrt(rest @ rest))
    return np.array(done)


def paper_run(guided, rows_of_steps):
    x = np.ones(D)
    v, gam, p, last, restarts, history = x, L, None, np.inf, 0, []
    q, d = (K - 1, D) if guided else (K, D + 1)  # ARS: d − 1 directions are all.
    theta = (q / (d - 1)) ** 2 / L
    for drawn in rows_of_steps:
        k = theta * gam
        al = (-k + np.sqrt(k**2 + 4 * theta * gam)) / 2
        gam = (1 - al) * gam
        y = (1 - al) * x + al * v
        us = gram_schmidt([drawn[0] if p is None or not guided else p, *drawn[1:]])
        slopes = np.array([(f(y + MU * u) - f(y)) / MU for u in us])
        dp = slopes[0] if guided else 0.0
        di, ui = (slopes[1:], us[1:]) if guided else (slopes, us)
        g1 = dp * us[0] + di @ ui
        g2 = dp * us[0] + (d - 1) / q * (di @ ui)
        dt = dp**2 / (dp**2 + (d - 1) * np.mean(di**2))
        theta_next = (dt + q / (d - 1) * (1 - dt)) / (L * (dt + (d - 1) / q * (1 - dt)))
        v = v - theta / al * g2
        x = y - g1 / L
        p, theta = g1, theta_next
        if f(y) > last:
            v, gam, restarts = x, L, restarts + 1
        last = f(y)
        history.append((x, last))
    return history, restarts


@pytest.mark.parametrize("name", GUESSES)
@pytest.mark.usefixtures("x64")
def test_a_run_is_the_paper_transcribed(name):
    key = jax.random.key(7)
    options = {"num_directions": K, "prior": GUESSES[name], "smoothing": MU}
    optimizer = radazo.pars(L, key=key, **options)
    xs, values, state = trajectory(optimizer, f, jnp.ones(D), NUM_STEPS)

    def rows(t):
        key_t = jax.random.fold_in(key, t)
        return radazo.directions.sample_directions(
            key_t, jnp.ones(D), radazo.directions.gaussian, num_directions=K
        )

    drawn = jax.jit(jax.vmap(rows))(jnp.arange(NUM_STEPS))
    history, restarts = paper_run(name == "pars", np.asarray(drawn))
    paper_xs, paper_values = zip(*history, strict=True)
    assert restarts > 1
    np.testing.assert_allclose(xs, paper_xs, rtol=0, atol=1e-11)
    np.testing.assert_allclose(values, paper_values, rtol=0, atol=1e-12)
    assert state.num_values == NUM_STEPS * (K + 1)


# At equal function values on a quadratic of condition 1000.


@functools.cache
def reached(name):
    """Values after 300 steps of 12 function values, from each of 3 keys."""
    dim, num_directions = 64, 11
    hessian = jnp.asarray(np.geomspace(1, 1e-3, dim), jnp.float32)
    value_fn = lambda x: jnp.sum(hessian * x**2) / 2
    options = {"num_directions": num_directions, "smoothing": 1e-3}

    def run(key):
        optimizer = {
            "pars": lambda: radazo.pars(1.0, key=key, **options),
            "ars": lambda: radazo.pars(1.0, key=key, prior=None, **options),
            "guided": lambda: radazo.zo_sgd(
                1.0, radazo.prior_guided_estimator(**options), key=key
            ),
            "random": lambda: radazo.zo_sgd(
                num_directions / dim, radazo.orthogonal_estimator(**options), key=key
            ),
        }[name]()

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=value_fn)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.ones(dim)
        (x, _), _ = jax.lax.scan(step, (x, optimizer.init(x)), length=300)
        return value_fn(x)

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 3)))


@pytest.mark.gate
@pytest.mark.parametrize(
    ("accelerated", "plain"), [("pars", "guided"), ("ars", "random"), ("pars", "ars")]
)
def test_acceleration_and_a_guess_pay_on_an_ill_conditioned_quadratic(
    accelerated, plain
):
    assert np.all(reached(accelerated) < 0.5 * reached(plain))


# What is not finite, and what is not a vector.


@pytest.mark.parametrize("prior", GUESSES.values(), ids=GUESSES.keys())
def test_a_step_without_a_finite_value_starts_anew_from_the_parameters(prior):
    optimizer = radazo.pars(1.0, key=0, num_directions=4, prior=prior)

    @jax.jit
    def step(x, state, scale):
        value_fn = lambda x: scale * half_sum_of_squares(x)
        return optimizer.update(None, state, x, value_fn=value_fn)

    x = jnp.ones(6)
    state = optimizer.init(x)
    for _ in range(3):
        updates, state = step(x, state, jnp.float32(1))
        x = x + updates
    updates, after = step(x, state, jnp.float32(jnp.nan))
    np.testing.assert_array_equal(updates, np.zeros(6))
    np.testing.assert_array_equal(after.estimator.ahead, np.zeros(6))
    jax.tree.map(
        np.testing.assert_array_equal, after.estimator.memory, state.estimator.memory
    )
    assert after.estimator.inertia == 1
    assert np.any(state.estimator.ahead)
    assert after.estimator.trust == state.estimator.trust
    assert after.estimator.previous_value == state.estimator.previous_value
    assert (after.num_skipped, after.num_dropped) == (1, 4)


def test_a_wall_of_nan_stops_no_run():
    def value_fn(x):
        return jnp.where(x[0] < -0.3, jnp.nan, half_sum_of_squares(x))

    optimizer = radazo.pars(
        2.0, key=3, num_directions=4, smoothing=0.5, difference=radazo.central
    )
    xs, _, state = trajectory(optimizer, value_fn, jnp.ones(6), 60)
    assert state.num_dropped > 0
    assert np.all(np.isfinite(xs))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.estimator))
    assert value_fn(xs[-1]) < 1e-2 * value_fn(jnp.ones(6))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_parameters_are_any_pytree_and_keep_their_types(dtype):
    params = {
        "a": jnp.ones((2, 3), dtype),
        "b": (jnp.ones(2), jnp.arange(3)),
        "c": None,
    }
    optimizer = radazo.pars(
        1.0,
        key=0,
        num_directions=4,
        smoothing=0.1,
        mask={"a": True, "b": True, "c": True},
    )
    xs, _, state = trajectory(optimizer, half_sum_of_squares, params, 40)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    last = jax.tree.map(lambda x: x[-1], xs)
    assert kinds(last) == kinds(params)
    assert kinds(state) == kinds(optimizer.init(params))
    assert half_sum_of_squares(last) < 0.2 * half_sum_of_squares(params)
    np.testing.assert_array_equal(last["b"][1], params["b"][1])


MISTAKES = {
    "no smoothness": Mistake(
        lambda: radazo.pars(0.0, key=0),
        ValueError,
        "pars(smoothness",
        "be finite and greater than 0",
        "0.0.",
        "It is the Lipschitz constant of the gradient: steps are divided by it.",
    ),
    "a guess and nothing else": Mistake(
        lambda: radazo.pars(1.0, key=0, num_directions=1),
        ValueError,
        "pars(num_directions",
        "be at least 2",
        "1.",
        "One random direction, and one more for the guess; 10 is a good start.",
    ),
    "a prior by name": Mistake(
        lambda: radazo.pars(1.0, key=0, prior="last_estimate"),
        TypeError,
        "pars(prior",
        "be a Prior",
        "'last_estimate'.",
        "Pass a prior, e.g. `radazo.estimators.last_estimate`.",
    ),
    "more directions than dimensions": Mistake(
        lambda: trajectory(radazo.pars(1.0, key=0), f, jnp.ones(D), 1),
        ValueError,
        "pars(num_directions",
        f"be at most the number of perturbed elements, {D}",
        "10.",
        "There are no more orthogonal directions than dimensions.",
    ),
    "no function": Mistake(
        lambda: radazo.pars(1.0, key=0).update(None, None, jnp.ones(D)),
        ValueError,
        "pars(...).update(value_fn",
        "be the function to minimize",
        "None",
        "Call `optimizer.update(None, state, params, value_fn=f)`.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_explained(mistake):
    explained(mistake)
