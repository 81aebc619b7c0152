"""Second moments that elements share: in NumPy, in bytes, and where they must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained

import radazo

B1, B2, EPS, EPS_ROOT = 0.8, 0.9, 0.01, 0.04
NUM_STEPS = 4
PARAMS = {
    "cube": np.zeros((2, 3, 4)),
    "matrix": np.zeros((3, 4)),
    "row": np.zeros((1, 3)),
    "vector": np.zeros(3),
    "number": np.zeros(()),
    "nothing": np.zeros((0, 2)),
}
PASSIVE = {"integers": jnp.arange(3), "none": None}
GRANULARITIES = {
    name: getattr(radazo.optimizers, name)
    for name in ("per_coordinate", "factored", "per_leaf", "scalar")
}


@pytest.fixture(params=GRANULARITIES)
def name(request):
    return request.param


def gradients():
    """Of all leaves (T, ...), of many sizes."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0, 1, (NUM_STEPS, *x.shape)) * np.exp(i)
        for i, (name, x) in enumerate(PARAMS.items())
    }


# In NumPy: what is averaged over time, and what of it divides a leaf.


def has_rows_and_columns(name):
    return name in ("cube", "matrix")


def kept(granularity, gradient):
    """A list of arrays by leaf."""
    squares = {name: np.square(x) for name, x in gradient.items()}
    if granularity == "per_leaf":
        return {n: [np.mean(x) if x.size else 0.0] for n, x in squares.items()}
    if granularity == "scalar":
        mean = np.mean(np.concatenate([x.ravel() for x in squares.values()]))
        return {n: [mean] for n in squares}
    if granularity == "factored":
        return {
            n: [x.mean(-1), x.mean(-2)] if has_rows_and_columns(n) else [x]
            for n, x in squares.items()
        }
    return {n: [x] for n, x in squares.items()}


def divisor(nu):
    if len(nu) == 1:
        return nu[0]
    rows, columns = nu
    return np.einsum("...i,...j,...->...ij", rows, columns, 1 / rows.mean(-1))


def transcribed(granularity, *, of_momentum=False, momentum=True, amsgrad=False):
    """The updates of the last step."""
    mu, nu, largest = dict.fromkeys(PARAMS, 0.0), None, None
    for t in range(NUM_STEPS):
        g = {name: x[t] for name, x in gradients().items()}
        mu = {n: B1 * mu[n] + (1 - B1) * g[n] for n in g}
        now = kept(granularity, mu if of_momentum else g)
        old = nu or {n: [0.0] * len(x) for n, x in now.items()}
        nu = {
            n: [B2 * x + (1 - B2) * y for x, y in zip(old[n], now[n], strict=True)]
            for n in g
        }
        largest = {
            n: [
                np.maximum(x, y) for x, y in zip(nu[n], (largest or nu)[n], strict=True)
            ]
            for n in g
        }
    top, nu = mu if momentum else g, largest if amsgrad else nu
    return {n: top[n] / (np.sqrt(divisor(nu[n]) + EPS_ROOT) + EPS) for n in g}


def updated(link):
    """The updates of the last step, and the state."""

    def run():
        state = link.init(jax.tree.map(jnp.asarray, PARAMS) | PASSIVE)
        for t in range(NUM_STEPS):
            g = {name: jnp.asarray(x[t]) for name, x in gradients().items()}
            updates, state = link.update(g | PASSIVE, state)
        return updates, state

    return jax.jit(run)()


CONSTANTS = {"b2": B2, "eps": EPS, "eps_root": EPS_ROOT}
RULES = {
    "rmsprop": (radazo.scale_by_second_moment, CONSTANTS, {"momentum": False}),
    "radazo": (radazo.scale_by_radazo, CONSTANTS | {"b1": B1}, {"of_momentum": True}),
    "adamm": (radazo.scale_by_zo_adamm, CONSTANTS | {"b1": B1}, {}),
    "amsgrad": (
        radazo.scale_by_zo_adamm,
        CONSTANTS | {"b1": B1, "amsgrad": True},
        {"amsgrad": True},
    ),
}


@pytest.mark.parametrize(("make", "options", "rule"), RULES.values(), ids=RULES)
@pytest.mark.usefixtures("x64")
def test_a_rule_is_its_transcription(make, options, rule, name):
    link = make(**options, granularity=GRANULARITIES[name])
    updates, state = updated(link)
    expected = transcribed(name, **rule)
    for leaf, x in expected.items():
        np.testing.assert_allclose(updates[leaf], x, rtol=1e-12, err_msg=leaf)
    np.testing.assert_array_equal(updates["integers"], PASSIVE["integers"])
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(
        jnp.result_type, link.init(jax.tree.map(jnp.asarray, PARAMS) | PASSIVE)
    )


SIZES = {  # Of one leaf (300, 200): numbers in nu.
    "per_coordinate": 60_000,
    "factored": 500,
    "per_leaf": 1,
    "scalar": 1,
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_memory_is_what_is_said(name, dtype):
    params = jnp.zeros((300, 200), dtype)
    link = radazo.scale_by_zo_adamm(amsgrad=True, granularity=GRANULARITIES[name])
    state = link.init(params)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(s)) for s in state[1:]]
    assert sizes == [4 * 60_000, 4 * SIZES[name], 4 * SIZES[name]]


@pytest.mark.usefixtures("x64")
def test_on_one_leaf_per_leaf_is_scalar_and_on_scalars_per_coordinate():
    def last(shape, granularity):
        link = radazo.scale_by_radazo(granularity=granularity)
        g = jnp.asarray(np.random.default_rng(1).normal(size=shape))
        return link.update({"a": g, "b": None}, link.init({"a": g, "b": None}))[0]["a"]

    np.testing.assert_allclose(
        last((3, 4), radazo.optimizers.per_leaf),
        last((3, 4), radazo.optimizers.scalar),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        last((), radazo.optimizers.per_leaf),
        last((), radazo.optimizers.per_coordinate),
        rtol=1e-14,
    )


@pytest.mark.usefixtures("x64")
def test_factored_is_exact_where_squares_have_rank_one():
    rng = np.random.default_rng(2)
    g = jnp.asarray(np.outer(rng.normal(size=4), rng.normal(size=3)))

    def last(granularity):
        link = radazo.scale_by_second_moment(granularity=granularity)
        return link.update(g, link.init(g))[0]

    exact = last(radazo.optimizers.per_coordinate)
    np.testing.assert_allclose(last(radazo.optimizers.factored), exact, rtol=1e-12)


def test_zeros_are_divided_by_no_zero(name):
    link = radazo.scale_by_radazo(
        eps=0.0, eps_root=0.0, granularity=GRANULARITIES[name]
    )
    g = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(0), "c": jnp.zeros((2, 0))}
    updates, state = link.update(g, link.init(g))
    assert all(np.all(x == 0) for x in jax.tree.leaves((updates, state.nu)))


def test_mixed_types_keep_their_own(name):
    g = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    link = radazo.scale_by_radazo(b1=0.0, granularity=GRANULARITIES[name])
    updates, state = link.update(g, link.init(g))
    assert (updates["a"].dtype, updates["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(state.nu)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(updates["b"], 10.0, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_a_number_for_all_is_wide_if_one_leaf_is():
    g = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
    link = radazo.scale_by_second_moment(granularity=radazo.optimizers.scalar)
    updates, state = link.update(g, link.init(g))
    assert state.nu.dtype == jnp.float64
    assert (updates["a"].dtype, updates["b"].dtype) == (jnp.float32, jnp.float64)


# The complete optimizers.

MAKE = {
    "radazo": (radazo.radazo, radazo.scale_by_radazo, {"b1": B1}),
    "zo_adamm": (radazo.zo_adamm, radazo.scale_by_zo_adamm, {"b1": B1}),
    "zo_rmsprop": (radazo.zo_rmsprop, radazo.scale_by_second_moment, {}),
}


def sum_of_squares(params):
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(params))


def steps(optimizer, num_steps=5):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=sum_of_squares)
        return (optax.apply_updates(params, updates), state), None

    params = {"a": jnp.full((2, 3), 2.0), "b": jnp.array([-1.0, 3.0])}
    carry = params, optimizer.init(params)
    return jax.jit(lambda c: jax.lax.scan(step, c, length=num_steps)[0])(carry)


@pytest.mark.parametrize(("make", "rule", "more"), MAKE.values(), ids=MAKE)
def test_an_optimizer_hands_its_granularity_on(make, rule, more):
    options = {
        "b2": 0.8,
        "eps_root": 0.1,
        "granularity": radazo.optimizers.factored,
    } | more
    ours = steps(make(0.1, key=0, **options))[0]
    links = optax.chain(rule(**options), optax.scale_by_learning_rate(0.1))
    theirs = steps(radazo.with_estimator(radazo.sphere_estimator(), links, 0))[0]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.usefixtures("x64")
def test_meazo_is_rmsprop_with_one_number():
    options = {"b2": 0.8, "eps": 0.1, "eps_root": 0.2, "weight_decay": 0.3}
    ours, state = steps(radazo.meazo(0.1, key=0, **options))
    theirs, _ = steps(
        radazo.zo_rmsprop(0.1, key=0, granularity=radazo.optimizers.scalar, **options)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert sum(x.size for x in jax.tree.leaves(state.optimizer)) == 1


@pytest.mark.usefixtures("x64")
def test_meazo_squares_the_slope_of_one_rademacher_direction():
    # nu of the publication, of the mean slope, but for its correction.
    estimator = radazo.rademacher_estimator(num_directions=1)
    params, nu = jnp.array([3.0, -4.0, 1.0]), 0.0
    optimizer = radazo.meazo(0.1, estimator, key=5)
    state = optimizer.init(params)
    slopes = jax.jit(
        lambda key, x: (
            radazo.estimate(estimator, key, sum_of_squares, x, estimator.init(x))[
                3
            ].slopes
        )
    )
    update = jax.jit(lambda s, x: optimizer.update(None, s, x, value_fn=sum_of_squares))
    for t in range(3):
        key = jax.random.fold_in(jax.random.key(5), t)
        (slope,) = slopes(key, params)
        nu = 0.99 * nu + 0.01 * slope**2
        updates, state = update(state, params)
        expected = 0.1 * abs(slope) / np.sqrt(nu + 1e-8)
        np.testing.assert_allclose(np.abs(updates), expected, rtol=1e-12)
        params = params + updates


WRONG = {
    "scale_by_second_moment": radazo.scale_by_second_moment,
    "scale_by_radazo": radazo.scale_by_radazo,
    "scale_by_zo_adamm": radazo.scale_by_zo_adamm,
    "radazo": lambda **kw: radazo.radazo(0.1, key=0, **kw),
    "zo_adamm": lambda **kw: radazo.zo_adamm(0.1, key=0, **kw),
    "zo_rmsprop": lambda **kw: radazo.zo_rmsprop(0.1, key=0, **kw),
}


@pytest.mark.parametrize(("api_name", "make"), WRONG.items(), ids=WRONG)
def test_a_granularity_by_name_is_explained(api_name, make):
    explained(
        Mistake(
            lambda: make(granularity="scalar"),
            TypeError,
            f"{api_name}(granularity",
            "be a Granularity",
            "'scalar'.",
            "Pass a granularity, e.g. `radazo.optimizers.scalar`.",
        )
    )


def test_wrong_constants_of_meazo_are_explained():
    explained(
        Mistake(
            lambda: radazo.meazo(0.1, key=0, b2=1.0),
            ValueError,
            "meazo(b2",
            "be in [0, 1)",
            "1.0.",
            "It is the share of the past that a moment keeps at each step.",
        )
    )
