"""References: the paper in NumPy, letter by letter, and what optax has of it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import estimator_of

import radazo

NUM_STEPS = 50
K, MU, ETA = 3, 0.1, 0.05
PARAMS = {
    "a": np.array([1.0, -2.0, 0.5]),
    "b": (np.array([[0.3, -0.7]]), np.array(2.0)),
}
D = 6
# A decay of 0.99 sums the rounding of 100 steps, of a few operations each.
ROUNDING = 1e-12


# The paper, arXiv:2502.01014, in its letters. `s` holds m, v and v̂, which start at 0.


def f(x):
    """A function of all coordinates of a NumPy or JAX vector jointly, of order one."""
    c = np.linspace(0.5, 1.5, D)
    return ((x - 1) ** 2 * c).sum() / 2 + x.sum() ** 4 / 50 + x[0] * x[5]


def f_of_params(params):
    return f(jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)]))


def g_hat(theta, us):
    """Equation 2: forward differences of one base value, factor d / K."""
    return D / K * sum((f(theta + MU * u) - f(theta)) / MU * u for u in us)


def r_adazo(s, g, p):
    s.m = p.b1 * s.m + (1 - p.b1) * g  # (4)
    s.v = p.b2 * s.v + (1 - p.b2) * s.m**2  # (6)
    return s.m / (np.sqrt(s.v + p.eps_root) + p.eps)  # (7)


def zo_adamm(s, g, p):
    s.m = p.b1 * s.m + (1 - p.b1) * g  # (3)
    s.v = p.b2 * s.v + (1 - p.b2) * g**2
    return s.m / (np.sqrt(s.v + p.eps_root) + p.eps)


def zo_adamm_2019(s, g, p):
    s.m = p.b1 * s.m + (1 - p.b1) * g  # arXiv:1910.06513, algorithm 1
    s.v = p.b2 * s.v + (1 - p.b2) * g**2
    s.v_hat = np.maximum(s.v_hat, s.v)
    return s.m / (np.sqrt(s.v_hat + p.eps_root) + p.eps)


def zo_rmsprop(s, g, p):
    s.v = p.b2 * s.v + (1 - p.b2) * g**2  # (5)
    return g / (np.sqrt(s.v + p.eps_root) + p.eps)


def zo_sgd(s, g, p):
    return g


def zo_sgd_with_momentum(s, g, p):
    s.m = 0.8 * s.m + g
    return s.m


def zo_signsgd(s, g, p):
    return np.sign(g)


def paper_run(rule, us, weight_decay, **options):
    """(T, d): the iterates θ₁, ..., θ_T along the directions `us`."""
    p = SimpleNamespace(
        **{"b1": 0.9, "b2": 0.99, "eps": 0.0, "eps_root": 1e-8} | options
    )
    s = SimpleNamespace(m=np.zeros(D), v=np.zeros(D), v_hat=np.zeros(D))
    theta = np.concatenate([x.ravel() for x in jax.tree.leaves(PARAMS)])
    thetas = []
    for u in us:
        theta = theta - ETA * (rule(s, g_hat(theta, u), p) + weight_decay * theta)
        thetas.append(theta)
    return np.array(thetas)


def radazo_run(optimizer, num_steps=NUM_STEPS):
    """(T, d): the iterates of a complete optimizer."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=f_of_params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate(
            [x.ravel() for x in jax.tree.leaves(params)]
        )

    params = jax.tree.map(jnp.asarray, PARAMS)
    carry = (params, optimizer.init(params))
    run = jax.jit(lambda: jax.lax.scan(step, carry, length=num_steps)[1])
    return np.asarray(run())


def directions_of_steps(seed):
    """(T, K, d): the directions of step t are drawn with fold_in(key, t)."""

    def of_step(t):
        return radazo.directions.sample_directions(
            jax.random.fold_in(jax.random.key(seed), t), jnp.zeros(D), num_directions=K
        )

    return np.asarray(
        jax.jit(jax.vmap(of_step))(jnp.arange(NUM_STEPS, dtype=jnp.uint32))
    )


DEFAULT, INSIDE = {}, {"eps": 0.0, "eps_root": 0.04, "b2": 0.9}
OUTSIDE = {"eps": 0.2, "eps_root": 0.0, "b2": 0.9}
AMSGRAD, MOMENTUM = {"amsgrad": True}, {"momentum": 0.8}
PAPER = [
    (radazo.radazo, r_adazo, DEFAULT, {}, 0.0),
    (radazo.radazo, r_adazo, INSIDE | {"b1": 0.8}, {}, 0.1),
    (radazo.radazo, r_adazo, OUTSIDE, {}, 0.1),
    (radazo.zo_adamm, zo_adamm, DEFAULT, {}, 0.0),
    (radazo.zo_adamm, zo_adamm, INSIDE | {"b1": 0.8}, {}, 0.1),
    (radazo.zo_adamm, zo_adamm, OUTSIDE, {}, 0.1),
    (radazo.zo_adamm, zo_adamm_2019, INSIDE, AMSGRAD, 0.0),
    (radazo.zo_adamm, zo_adamm_2019, OUTSIDE, AMSGRAD, 0.1),
    (radazo.zo_rmsprop, zo_rmsprop, DEFAULT, {}, 0.0),
    (radazo.zo_rmsprop, zo_rmsprop, INSIDE, {}, 0.1),
    (radazo.zo_rmsprop, zo_rmsprop, OUTSIDE, {}, 0.1),
    (radazo.zo_sgd, zo_sgd, {}, {}, 0.1),
    (radazo.zo_sgd, zo_sgd_with_momentum, {}, MOMENTUM, 0.0),
    (radazo.zo_signsgd, zo_signsgd, {}, {}, 0.1),
]
# Each rule once, with weight decay where it may have it, and both places of a constant.
FAST = {1, 2, 4, 6, 9, 11, 12, 13}


@pytest.mark.parametrize(
    ("make", "rule", "options", "flags", "weight_decay"),
    [
        pytest.param(
            *case,
            id=f"{case[1].__name__}-{i}",
            marks=() if i in FAST else pytest.mark.gate,
        )
        for i, case in enumerate(PAPER)
    ],
)
@pytest.mark.fast_cases(6)
@pytest.mark.usefixtures("x64")
def test_an_optimizer_is_the_paper_transcribed(
    make, rule, options, flags, weight_decay
):
    estimator = radazo.sphere_estimator(num_directions=K, smoothing=MU)
    optimizer = make(
        ETA, estimator, key=11, weight_decay=weight_decay, **options, **flags
    )
    ours = radazo_run(optimizer)
    theirs = paper_run(rule, directions_of_steps(11), weight_decay, **options)
    assert np.max(np.abs(theirs[-1] - theirs[0])) > ETA  # It went somewhere.
    scale = np.max(np.abs(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING * scale)


@pytest.mark.usefixtures("x64")
def test_the_estimator_of_an_optimizer_is_the_paper_s_if_none_is_given():
    estimator = radazo.sphere_estimator(
        num_directions=10, smoothing=5e-3, difference=radazo.forward, chunk_size=1
    )
    given = radazo_run(radazo.zo_sgd(1e-3, estimator, key=0), num_steps=3)
    np.testing.assert_array_equal(
        radazo_run(radazo.zo_sgd(1e-3, key=0), num_steps=3), given
    )


# optax: the same gradients go through both.


def replay(gradients):
    """An estimator whose estimates are the rows of `gradients`, one after the other."""

    def estimate(value_fn, params, state):
        gradient = jax.tree.map(lambda x: x[state], gradients)
        info = radazo.estimators.EstimateInfo(
            jnp.zeros(1), jnp.ones(1, bool), jnp.int32(1)
        )
        return jnp.float32(0), gradient, state + 1, info

    return estimator_of(lambda params: jnp.int32(0), estimate)


def some_gradients(num_steps=NUM_STEPS):
    """Gradients of many sizes, with signs that change and zeros among them."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(0, 2, (num_steps, D)))
    g = size * rng.normal(0.3, 1, (num_steps, D)) * (rng.random((num_steps, D)) > 0.1)
    g = jnp.asarray(g)
    return {"a": g[:, :3], "b": (g[:, 3:5].reshape(-1, 1, 2), g[:, 5])}


def same_updates(ours, theirs):
    """Both optimizers move the parameters alike for 50 steps."""
    gradients = some_gradients()
    params = jax.tree.map(jnp.asarray, PARAMS)

    def step(carry, gradient):
        (x, s), (y, r) = carry
        u, s = ours(replay(gradients)).update(None, s, x, value_fn=f_of_params)
        v, r = theirs.update(gradient, r, y)
        return ((optax.apply_updates(x, u), s), (optax.apply_updates(y, v), r)), (u, v)

    state = ours(replay(gradients)).init(params)
    carry = ((params, state), (params, theirs.init(params)))
    with jax.numpy_dtype_promotion("standard"):
        _, (u, v) = jax.lax.scan(step, carry, gradients)
    for x, y in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True):
        assert np.all(np.isfinite(y))
        assert np.any(y != 0)
        scale = np.max(np.abs(y))
        np.testing.assert_allclose(x, y, rtol=ROUNDING, atol=ROUNDING * scale)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.usefixtures("x64")
def test_radazo_is_rmsprop_of_the_momentum(inside):
    eps = {"eps": 0.0, "eps_root": 1e-2} if inside else {"eps": 1e-2, "eps_root": 0.0}
    same_updates(
        lambda estimator: radazo.radazo(ETA, estimator, key=0, **eps),
        optax.chain(
            optax.ema(0.9, debias=False),
            optax.scale_by_rms(0.99, eps=1e-2, eps_in_sqrt=inside),
            optax.scale_by_learning_rate(ETA),
        ),
    )


@pytest.mark.usefixtures("x64")
def test_the_two_links_of_radazo_are_the_fused_one():
    eps = {"b2": 0.95, "eps": 1e-3, "eps_root": 1e-4}
    same_updates(
        lambda estimator: radazo.with_estimator(
            estimator, radazo.scale_by_radazo(0.8, **eps), key=0
        ),
        optax.chain(radazo.first_moment(0.8), radazo.scale_by_second_moment(**eps)),
    )


@pytest.mark.usefixtures("x64")
def test_zo_adamm_with_amsgrad_is_amsgrad_without_corrections():
    same_updates(
        lambda estimator: radazo.zo_adamm(ETA, estimator, key=0, amsgrad=True),
        optax.chain(
            optax.scale_by_amsgrad(
                0.9,
                0.99,
                eps=0.0,
                eps_root=1e-8,
                bias_correction_mu=False,
                bias_correction_nu=False,
            ),
            optax.scale_by_learning_rate(ETA),
        ),
    )


@pytest.mark.usefixtures("x64")
def test_zo_adamm_is_adam_with_its_corrections_taken_back():
    # mu / (1 − b1ᵗ) over √(nu / (1 − b2ᵗ)): adam's step is ours times the ratio.
    def adam_uncorrected():
        adam = optax.scale_by_adam(0.9, 0.99, eps=1e-300)

        def update(updates, state, params=None):
            updates, state = adam.update(updates, state, params)
            t = state.count.astype(float)
            ratio = (1 - 0.9**t) / jnp.sqrt(1 - 0.99**t)
            return jax.tree.map(lambda u: -ETA * ratio * u, updates), state

        return optax.GradientTransformation(adam.init, update)

    same_updates(
        lambda estimator: radazo.zo_adamm(ETA, estimator, key=0, eps_root=0.0),
        adam_uncorrected(),
    )


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.usefixtures("x64")
def test_zo_rmsprop_is_rmsprop(inside):
    eps = {"eps": 0.0, "eps_root": 1e-2} if inside else {"eps": 1e-2, "eps_root": 0.0}
    same_updates(
        lambda estimator: radazo.zo_rmsprop(ETA, estimator, key=0, b2=0.9, **eps),
        optax.rmsprop(ETA, decay=0.9, eps=1e-2, eps_in_sqrt=inside),
    )


@pytest.mark.parametrize("momentum", [None, 0.8])
@pytest.mark.usefixtures("x64")
def test_zo_sgd_is_sgd(momentum):
    same_updates(
        lambda estimator: radazo.zo_sgd(ETA, estimator, key=0, momentum=momentum),
        optax.sgd(ETA, momentum=momentum),
    )


@pytest.mark.usefixtures("x64")
def test_zo_signsgd_is_sign_sgd():
    same_updates(
        lambda estimator: radazo.zo_signsgd(ETA, estimator, key=0), optax.sign_sgd(ETA)
    )


@pytest.mark.usefixtures("x64")
def test_weight_decay_is_decoupled_from_the_rule_as_in_adamw(make_optimizer):
    mask = {"a": True, "b": (False, True)}
    alone = make_optimizer(ETA, replay(some_gradients()), key=0)
    decayed = make_optimizer(
        ETA, replay(some_gradients()), key=0, weight_decay=0.1, weight_decay_mask=mask
    )
    params = jax.tree.map(jnp.asarray, PARAMS)

    def updates(optimizer):
        update = lambda: optimizer.update(
            None, optimizer.init(params), params, value_fn=f_of_params
        )
        return jax.jit(update)()[0]

    expected = jax.tree.map(
        lambda u, x, on: u - ETA * 0.1 * on * x, updates(alone), params, mask
    )
    for x, y in zip(
        jax.tree.leaves(updates(decayed)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=ROUNDING)
