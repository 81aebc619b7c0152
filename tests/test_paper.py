"""Properties P1 to P8 of the method, and what a step reads and keeps.

Statistical tolerances are five standard errors, computed from the sample.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import radazo

B1, B2 = 0.9, 0.99
RULES = {
    "radazo": lambda **kw: radazo.scale_by_radazo(B1, B2, **kw),
    "zo_adamm": lambda **kw: radazo.scale_by_zo_adamm(B1, B2, **kw),
    "zo_rmsprop": lambda **kw: radazo.scale_by_second_moment(B2, **kw),
}
EPS = np.finfo(np.float32).eps


def updates_of(rule, gradients):
    """(T, d): what `rule` makes of the rows of `gradients`."""

    def step(state, gradient):
        updates, state = rule.update(gradient, state)
        return state, updates

    gradients = jnp.asarray(gradients, jnp.result_type(float))
    return np.asarray(jax.lax.scan(step, rule.init(gradients[0]), gradients)[1])


def wild_gradients(num_steps=300, d=50, seed=0):
    """Gradients whose sizes change by many orders of magnitude from step to step."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 4, (num_steps, 1)))
    return size * rng.standard_cauchy((num_steps, d))


def within_standard_errors(samples, expected, slack=0.0):
    """The mean over axis 0 of `samples` is `expected`, to five standard errors."""
    error = np.abs(np.mean(samples, axis=0) - expected)
    standard_error = np.std(samples, axis=0) / np.sqrt(len(samples))
    assert np.all(error <= 5 * standard_error + slack), error / standard_error


# P1 to P4: what holds for any gradients.


def test_p1_a_radazo_step_is_at_most_one_over_the_root_of_one_minus_b2():
    steps = updates_of(RULES["radazo"](eps_root=0.0), wild_gradients())
    bound = 1 / np.sqrt(1 - B2)
    assert np.max(np.abs(steps)) <= bound * (1 + 8 * EPS)
    assert np.max(np.abs(steps)) > 0.99 * bound  # The bound is attained.


def test_p1_a_zo_adamm_step_has_no_such_bound():
    gradients = np.concatenate([np.ones((1, 1)), np.zeros((40, 1))])
    options = {"b1": 0.9, "b2": 0.5, "eps_root": 0.0}
    bound = 1 / np.sqrt(1 - 0.5) * (1 + 8 * EPS)
    adamm = updates_of(radazo.scale_by_zo_adamm(**options), gradients)
    refined = updates_of(radazo.scale_by_radazo(**options), gradients)
    assert np.max(np.abs(adamm)) > 10 * bound
    assert np.max(np.abs(refined)) <= bound


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("radazo", 1 / np.sqrt(1 - B2)),
        ("zo_adamm", (1 - B1) / np.sqrt(1 - B2)),
        ("zo_rmsprop", 1 / np.sqrt(1 - B2)),
    ],
)
def test_p2_the_first_step_has_one_length_whatever_the_gradient(name, length):
    gradients = wild_gradients(num_steps=1)
    step = updates_of(RULES[name](eps_root=0.0), gradients)
    np.testing.assert_allclose(step, length * np.sign(gradients), rtol=8 * EPS)


@pytest.mark.parametrize("name", RULES)
def test_p3_without_a_constant_the_scale_of_the_gradients_does_not_matter(name):
    gradients = wild_gradients(num_steps=50)
    rule = RULES[name](eps_root=0.0)
    # Times a power of four no rounding differs, so that equal means equal.
    np.testing.assert_array_equal(
        updates_of(rule, 2.0**-10 * gradients), updates_of(rule, gradients)
    )


@pytest.mark.parametrize("name", RULES)
def test_p3_with_a_constant_inside_the_root_the_scale_matters(name):
    gradients = wild_gradients(num_steps=5)
    rule = RULES[name](eps_root=1.0)
    assert np.any(updates_of(rule, 2.0**-10 * gradients) != updates_of(rule, gradients))


@pytest.mark.parametrize(
    "rule",
    [
        radazo.scale_by_radazo(0.0, B2, 1e-3, 1e-4),
        radazo.scale_by_zo_adamm(0.0, B2, 1e-3, 1e-4),
    ],
    ids=["radazo", "zo_adamm"],
)
def test_p4_without_momentum_every_adaptive_rule_is_rmsprop(rule):
    gradients = wild_gradients(num_steps=50)
    rmsprop = radazo.scale_by_second_moment(B2, 1e-3, 1e-4)
    np.testing.assert_array_equal(
        updates_of(rule, gradients), updates_of(rmsprop, gradients)
    )


# P5: the variance of an estimate of the gradient of a linear function.

A = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
D, K = len(A), 3
SQUARE = float(A @ A)
SPHERE = D / (D + 2) * (SQUARE + 2 * A**2) - A**2
VARIANCE = {
    "sphere": SPHERE / K,
    "gaussian": (SQUARE + A**2) / K,
    "rademacher": (SQUARE - A**2) / K,
    "coordinate": (D - 1) * A**2 / K,
    # Drawn without replacement from d that add up to the gradient exactly.
    "orthogonal": SPHERE / K * (D - K) / (D - 1),
}
TOTAL = {
    "sphere": (D - 1) * SQUARE / K,
    "gaussian": (D + 1) * SQUARE / K,
    "rademacher": (D - 1) * SQUARE / K,
    "coordinate": (D - 1) * SQUARE / K,
    "orthogonal": (D / K - 1) * SQUARE,
}
MAKERS = {
    "sphere": radazo.sphere_estimator,
    "gaussian": radazo.gaussian_estimator,
    "rademacher": radazo.rademacher_estimator,
    "coordinate": radazo.coordinate_estimator,
    "orthogonal": radazo.orthogonal_estimator,
}


def linear(params):
    x, y = params
    return jnp.sum(x * jnp.asarray(A[:4].reshape(2, 2), x.dtype)) + jnp.sum(
        y * jnp.asarray(A[4:], y.dtype)
    )


def estimates_of(name, num, seed=0):
    """(num, d): estimates of A from `num` independent keys."""
    estimator = MAKERS[name](num_directions=K, smoothing=0.5)
    value_and_grad = radazo.value_and_grad(linear, estimator)
    params = (jnp.zeros((2, 2)), jnp.zeros(2))

    def one(key):
        x, y = value_and_grad(key, params)[1]
        return jnp.concatenate([x.ravel(), y])

    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


# Rounding of a slope of order |A| at a smoothing of one half, times d.
SLOPE_ROUNDING = 8 * D * EPS * float(np.sum(np.abs(A)))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", MAKERS)
def test_p5_an_estimate_has_the_mean_and_the_variance_of_its_sampler(name):
    samples = estimates_of(name, 20_000)
    within_standard_errors(samples, A, SLOPE_ROUNDING)
    squares = (samples - A) ** 2
    within_standard_errors(squares, VARIANCE[name], SLOPE_ROUNDING * np.abs(A).max())
    within_standard_errors(np.sum(squares, axis=1), TOTAL[name])


def test_p5_the_variances_of_the_coordinates_add_up_to_the_total():
    for name in MAKERS:
        np.testing.assert_allclose(np.sum(VARIANCE[name]), TOTAL[name], rtol=1e-12)


# P6 to P8: what averaging does to noise.


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("t", [1, 2, 10, 60])
def test_p6_the_variance_of_the_first_moment_falls_by_the_closed_form(seed, t):
    noise = np.random.default_rng(seed).normal(0, 3, (t, 20_000))
    last = updates_of(radazo.first_moment(B1), noise)[-1]
    expected = (1 - B1) / (1 + B1) * (1 - B1 ** (2 * t)) * 3.0**2
    within_standard_errors(last**2, expected)


def cosines_squared(num_directions, num_steps):
    """(N,) cos² between grad f and the momentum, of N runs; and d."""
    d, num = 400, 1000
    estimator = radazo.sphere_estimator(num_directions=num_directions, smoothing=0.5)
    a = np.zeros(d, np.float32)
    a[0] = 1  # The distribution is that of any direction.
    value_and_grad = radazo.value_and_grad(lambda x: x[0], estimator)

    def one(key):
        def step(m, t):
            g = value_and_grad(jax.random.fold_in(key, t), jnp.zeros(d))[1]
            return B1 * m + (1 - B1) * g, None

        ts = jnp.arange(num_steps, dtype=jnp.uint32)
        m, _ = jax.lax.scan(step, jnp.zeros(d), ts)
        return m[0] ** 2 / jnp.sum(m**2)

    keys = jax.random.split(jax.random.key(0), num)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64), d


def test_p7_the_cosine_of_an_estimate_is_that_of_k_directions_among_d():
    samples, d = cosines_squared(num_directions=10, num_steps=1)
    expected = 10 / (d + 10)
    # cos² = τ / (1 + τ) where d·τ is χ² of K degrees: second order in τ is left out.
    within_standard_errors(samples, expected, expected * 4 / d)


@pytest.mark.gate
def test_p7_the_momentum_is_as_good_as_an_estimate_of_more_directions():
    num_directions = 2
    samples, d = cosines_squared(num_directions, num_steps=50)
    effective = num_directions * (1 + B1) / (1 - B1)
    expected = effective / (d + effective)
    # The weights fall geometrically: of second order in one over their number.
    within_standard_errors(samples, expected, expected * 4 * (1 / effective + 1 / d))


@pytest.mark.parametrize("name", ["zo_adamm", "radazo"])
def test_p8_the_second_moment_holds_the_noise_of_what_is_squared(name):
    num, num_steps, b2 = 2000, 60, 0.9
    make = {"zo_adamm": radazo.zo_adamm, "radazo": radazo.radazo}[name]
    estimator = radazo.gaussian_estimator(num_directions=K, smoothing=0.5)
    optimizer = make(0.0, estimator, key=0, b1=B1, b2=b2)
    params = (jnp.zeros((2, 2)), jnp.zeros(2))

    def one(key):
        state = optimizer.init(params)._replace(key_data=jax.random.key_data(key))
        step = lambda s, _: (
            optimizer.update(None, s, params, value_fn=linear)[1],
            None,
        )
        state, _ = jax.lax.scan(step, state, length=num_steps)
        x, y = state.optimizer[0].nu
        return jnp.concatenate([x.ravel(), y])

    keys = jax.random.split(jax.random.key(0), num)
    samples = np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)
    noise = 1 if name == "zo_adamm" else (1 - B1) / (1 + B1)
    steady = A**2 + noise * VARIANCE["gaussian"]
    # What 60 steps have not forgotten of the start: 0.9⁶⁰ of nu, about the sum of
    # (b2·t + 1)·0.9⁶⁰ of the squares of mu, and twice 0.9⁶⁰ of their cross terms.
    start = 2 * (num_steps + 1) * 0.9**num_steps * (1 - b2) * 2 * steady
    within_standard_errors(samples, steady, start + 0.9**num_steps * steady)


# What a step reads and keeps.


@pytest.mark.fast_cases(2)
def test_a_constant_schedule_is_the_number_it_holds(make_optimizer):
    def run(learning_rate, smoothing):
        estimator = radazo.sphere_estimator(num_directions=2, smoothing=smoothing)
        optimizer = make_optimizer(learning_rate, estimator, key=0)

        def step(carry, _):
            x, state = carry
            f = lambda x: jnp.sum((x - 1) ** 2)
            updates, state = optimizer.update(None, state, x, value_fn=f)
            return (x + updates, state), x + updates

        x = jnp.arange(3.0)
        return jax.lax.scan(step, (x, optimizer.init(x)), length=5)[1]

    scheduled = run(optax.constant_schedule(0.01), optax.constant_schedule(0.1))
    np.testing.assert_allclose(scheduled, run(0.01, 0.1), rtol=50 * EPS)


def test_the_learning_rate_of_step_t_is_the_schedule_at_t():
    estimator = radazo.orthogonal_estimator(num_directions=2)
    optimizer = radazo.zo_signsgd(
        lambda t: 0.5 * (t.astype(float) + 1), estimator, key=0
    )
    x = jnp.zeros(2)
    state, lengths = optimizer.init(x), []
    for _ in range(4):
        updates, state = optimizer.update(None, state, x, value_fn=jnp.sum)
        lengths.append(float(-updates[0]))
    assert lengths == [0.5, 1.0, 1.5, 2.0]


def test_the_smoothing_of_step_t_is_the_schedule_at_t():
    # Forward on x² at 0 along ±1: the slope is the smoothing times the direction.
    estimator = radazo.rademacher_estimator(
        num_directions=1, smoothing=lambda t: 0.5 * (t.astype(float) + 1)
    )
    optimizer = radazo.estimate_gradient(estimator, key=0)
    x = jnp.zeros(1)
    state, slopes = optimizer.init(x), []
    for _ in range(4):
        updates, state = optimizer.update(
            None, state, x, value_fn=lambda x: jnp.sum(x**2)
        )
        slopes.append(abs(float(updates[0])))
    assert slopes == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("make", [radazo.scale_by_radazo, radazo.scale_by_zo_adamm])
def test_mu_dtype_rounds_what_is_kept_and_not_what_is_done(make):
    gradient = jnp.asarray(wild_gradients(1)[0], jnp.float32)
    wide, narrow = make(), make(mu_dtype=jnp.bfloat16)
    u, s = wide.update(gradient, wide.init(gradient))
    v, r = narrow.update(gradient, narrow.init(gradient))
    np.testing.assert_array_equal(v, u)
    np.testing.assert_array_equal(r.nu, s.nu)
    assert r.nu.dtype == jnp.float32
    assert r.mu.dtype == jnp.bfloat16
    np.testing.assert_array_equal(r.mu, s.mu.astype(jnp.bfloat16))


COPIES = [
    (radazo.radazo, {}, 2),
    (radazo.zo_adamm, {}, 2),
    (radazo.zo_adamm, {"amsgrad": True}, 3),
    (radazo.zo_rmsprop, {}, 1),
    (radazo.zo_sgd, {}, 0),
    (radazo.zo_sgd, {"momentum": 0.9}, 1),
    (radazo.zo_signsgd, {}, 0),
    (radazo.radazo, {"mu_dtype": jnp.bfloat16}, 1.5),
    (radazo.zo_sgd, {"momentum": 0.9, "mu_dtype": jnp.bfloat16}, 0.5),
]


@pytest.mark.parametrize(("make", "options", "copies"), COPIES)
def test_the_state_holds_as_many_copies_of_the_parameters_as_it_says(
    make, options, copies
):
    params = {"a": jnp.zeros((100, 100)), "b": jnp.zeros(10_000)}
    optimizer = make(0.1, key=0, **options)
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(optimizer.init(params)))
    scalars = num_bytes - copies * 4 * 20_000
    assert 0 <= scalars < 100


@pytest.mark.parametrize("make", [radazo.radazo, radazo.zo_adamm, radazo.zo_rmsprop])
def test_moments_of_low_precision_parameters_are_in_float32(make):
    params = jnp.zeros(100, jnp.bfloat16)
    state = make(0.1, key=0).init(params).optimizer[0]
    moments = [x for x in jax.tree.leaves(state) if x.shape == (100,)]
    assert moments
    assert {moment.dtype for moment in moments} == {jnp.dtype(jnp.float32)}
