"""Projections are the nearest points of their sets, in any diagonal metric."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained
from hypothesis import Phase, given, settings
from scipy import optimize

import radazo

SIZE = 5
SETS = {
    "box": lambda scale: radazo.projections.box(-scale, scale / 2),
    "l2_ball": radazo.projections.l2_ball,
    "l1_ball": radazo.projections.l1_ball,
    "simplex": radazo.projections.simplex,
}
BALLS = {"l2_ball": 2, "l1_ball": 1}
properties = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
numbers = st.floats(-8, 8, width=16)
vectors = st.lists(numbers, min_size=SIZE, max_size=SIZE).map(np.array)
weights = st.lists(st.floats(-3, 3, width=16), min_size=SIZE, max_size=SIZE)
scales = st.floats(0.25, 4, width=16)


@functools.cache
def compiled(name):
    def project(x, scale, h):
        return SETS[name](scale)(x, None if h is None else h)

    if name == "box":  # Its bounds are read when it is made.
        return project
    return jax.jit(project)


def a_point_inside(name, raw, scale):
    """Some point of the set."""
    if name == "box":
        return np.clip(raw, -scale, scale / 2)
    if name == "simplex":
        share = np.abs(raw) + 0.1
        return scale * share / share.sum()
    return raw * min(1, scale / max(np.linalg.norm(raw, BALLS[name]), 1e-9))


def found_by_a_solver(name, x, h, scale):
    """argmin Σ h (y − x)² over the set, by sequential quadratic programming."""
    constraints, bounds, start = [], None, x
    if name == "box":
        bounds = [(-scale, scale / 2)] * SIZE
    if name == "l2_ball":
        inside = lambda y: scale**2 - y @ y
        constraints = [{"type": "ineq", "fun": inside, "jac": lambda y: -2 * y}]
    if name == "simplex":
        bounds = [(0, None)] * SIZE
        constraints = [{"type": "eq", "fun": lambda y: y.sum() - scale}]
        start = np.full(SIZE, scale / SIZE)
    if name == "l1_ball":  # y = p − n, with p and n not negative.
        objective = lambda z: np.sum(h * (z[:SIZE] - z[SIZE:] - x) ** 2)
        inside = {"type": "ineq", "fun": lambda z: scale - z.sum()}
        z = optimize.minimize(
            objective,
            np.full(2 * SIZE, scale / SIZE / 4),
            bounds=[(0, scale)] * (2 * SIZE),
            constraints=[inside],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        return z[:SIZE] - z[SIZE:]
    return optimize.minimize(
        lambda y: np.sum(h * (y - x) ** 2),
        start,
        jac=lambda y: 2 * h * (y - x),
        bounds=bounds,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("metric", [False, True])
def test_a_projection_is_the_argmin_that_a_generic_solver_finds(
    x64, name, seed, metric
):
    rng = np.random.default_rng(seed)
    x, scale = 2 * rng.standard_normal(SIZE), 0.5 + rng.random()
    h = np.exp(rng.standard_normal(SIZE)) if metric else None
    got = SETS[name](scale)(jnp.asarray(x), None if h is None else jnp.asarray(h))
    expected = found_by_a_solver(name, x, np.ones(SIZE) if h is None else h, scale)
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "of_optax"),
    [
        ("l2_ball", optax.projections.projection_l2_ball),
        ("l1_ball", optax.projections.projection_l1_ball),
        ("simplex", optax.projections.projection_simplex),
    ],
)
def test_without_a_metric_it_is_the_projection_of_optax(name, of_optax):
    x = 3 * jax.random.normal(jax.random.key(0), (1000,))
    with jax.numpy_dtype_promotion("standard"):
        expected = of_optax(x, 20.0)
    np.testing.assert_allclose(SETS[name](20.0)(x), expected, atol=3e-6)


@properties
@given(st.sampled_from(list(SETS)), vectors, vectors, weights, scales, st.booleans())
def test_it_is_inside_stays_there_and_is_the_nearest(name, raw, other, log_h, scale, m):
    h = np.exp(np.array(log_h)) if m else np.ones(SIZE)
    x = jnp.asarray(raw, jnp.float32)
    project = compiled(name)
    metric = jnp.asarray(h, jnp.float32) if m else None
    y = project(x, float(scale), metric)
    exact = np.asarray(y, np.float64)
    # Inside.
    if name == "box":
        assert np.all((exact >= -scale) & (exact <= scale / 2))
    elif name == "simplex":
        assert np.all(exact >= 0)
        np.testing.assert_allclose(exact.sum(), scale, rtol=1e-6)
    else:
        assert np.linalg.norm(exact, BALLS[name]) <= scale
    # Where it is, it stays. On a simplex, whose edge all points lie on, to rounding: of
    # it a weight that is small beside the others gets the more, since what the
    # multiplier moves is in inverse proportion.
    spread = h.max() / h.min() if name == "simplex" else 1
    np.testing.assert_allclose(
        project(y, float(scale), metric), y, rtol=0, atol=1e-6 * scale * spread
    )
    # Nearest: from y no point of the set lies in the direction of x.
    towards = a_point_inside(name, other, scale) - exact
    gain = np.sum(h * (raw - exact) * towards)
    assert gain <= 1e-5 * np.sum(h) * (1 + np.abs(raw).max()) * scale


@pytest.mark.parametrize("name", SETS)
def test_what_is_inside_is_returned_bit_for_bit(name):
    inside = jnp.asarray(a_point_inside(name, np.linspace(-0.1, 0.2, SIZE), 4.0))
    inside = inside.astype(jnp.float32)
    if name != "simplex":
        np.testing.assert_array_equal(SETS[name](4.0)(inside), inside)
    np.testing.assert_allclose(SETS[name](4.0)(inside), inside, atol=1e-6)


def pytree(dtype):
    return {
        "a": jnp.array([[3.0, -2.0]], dtype),
        "b": (jnp.asarray(0.3), None),
        "count": jnp.array([7, 8]),
        "key": jax.random.key(0),
        "plain": 2.5,
        "nothing": jnp.zeros((0, 2)),
    }


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_all_leaves_jointly_and_what_is_rounded_is_inside(name, dtype):
    scale = 1.7
    params = pytree(dtype)
    got = SETS[name](scale)(params)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert got["a"].dtype == dtype
    assert got["plain"] == 2.5
    np.testing.assert_array_equal(got["count"], [7, 8])
    flat = np.append(np.asarray(got["a"], np.float64), np.float64(got["b"][0]))
    if name == "box":
        assert np.all((flat >= -scale) & (flat <= scale / 2))
    elif name == "simplex":
        assert np.all(flat >= 0)
        np.testing.assert_allclose(flat.sum(), scale, rtol=jnp.finfo(dtype).eps)
    else:
        # Only this much is lost to rounding inward.
        norm = np.linalg.norm(flat, BALLS[name])
        assert scale * (1 - 8 * jnp.finfo(dtype).eps) <= norm <= scale
    weights = jax.tree.map(jnp.ones_like, {k: params[k] for k in ("a", "b", "nothing")})
    metric = params | weights
    again = SETS[name](scale)(params, metric)
    np.testing.assert_allclose(
        np.asarray(again["a"], np.float32),
        np.asarray(got["a"], np.float32),
        rtol=2 * float(jnp.finfo(dtype).eps),
    )


@pytest.mark.parametrize("name", ["l2_ball", "l1_ball", "simplex"])
@pytest.mark.parametrize("size", [1e30, 1e-30, 1e7])
def test_sizes_of_any_magnitude_stay_finite(name, size):
    x = size * jnp.array([1.0, -0.5, 0.25, 0.999])
    for metric in (None, jnp.array([1.0, 1e-12, 0.0, 1e12])):
        y = np.asarray(SETS[name](1.0)(x, metric), np.float64)
        assert np.all(np.isfinite(y))
        norm = np.linalg.norm(y, BALLS.get(name, 1))
        assert norm <= 1 + 1e-6
        if size > 1:
            assert norm >= 1 - 1e-5


def test_a_simplex_far_away_is_as_exact_as_one_nearby():
    x = jnp.array([0.5, 0.25, -1.0])
    near, far = radazo.projections.simplex()(x), radazo.projections.simplex()(x + 1024)
    np.testing.assert_allclose(far, near, atol=1e-6)


def test_only_nothing_to_move_is_left_alone():
    for params in ({}, {"a": jnp.array([3])}, {"b": jnp.zeros(0)}):
        assert radazo.projections.l2_ball()(params).keys() == params.keys()


def test_bounds_may_be_pytrees_and_are_rounded_to_the_inside():
    params = {"a": jnp.array([-9.0, 9.0], jnp.bfloat16), "b": jnp.asarray(5.0)}
    lower = {"a": np.array([-0.1, -np.inf]), "b": -1}
    got = radazo.projections.box(lower, {"a": 0.1, "b": 2})(params)
    a = np.asarray(got["a"], np.float64)
    assert -0.1 <= a[0] < -0.1 * (1 - 2**-7)
    assert 0.1 * (1 - 2**-7) < a[1] <= 0.1
    assert got["b"] == 2
    # A box that has no bfloat16 in it.
    assert radazo.projections.box(0.1, 0.1)(params["a"])[0] == jnp.bfloat16(0.1)


@pytest.mark.parametrize("name", SETS)
def test_a_projection_is_mapped_and_scanned(name):
    xs = jax.random.normal(jax.random.key(0), (3, SIZE))
    project = SETS[name](0.5)
    together = jax.jit(jax.vmap(project))(xs)
    _, scanned = jax.jit(
        lambda xs: jax.lax.scan(lambda carry, x: (carry, project(x)), None, xs)
    )(xs)
    alone = np.stack([project(x) for x in xs])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(scanned, alone, atol=1e-6)


V, T = ValueError, TypeError
SIZE_OF = "It is the size of the set"
ORDER = "have lower ≤ upper everywhere"
BOX = "be numbers or have the structure and the shapes of `params`"
PAIR = {"a": jnp.zeros(2)}
MISTAKES = {
    "no ball": (
        lambda: radazo.projections.l2_ball(0),
        V,
        "l2_ball(scale",
        "0.",
        SIZE_OF,
    ),
    "a turned ball": (
        lambda: radazo.projections.l1_ball(-1),
        V,
        "l1_ball(scale",
        "-1.",
        SIZE_OF,
    ),
    "no mass": (
        lambda: radazo.projections.simplex(0.0),
        V,
        "simplex(scale",
        "0.0.",
        SIZE_OF,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_size_that_is_none_is_explained(mistake):
    call, kind, api_name, got, hint = mistake
    rule = "be finite and greater than 0"
    explained(Mistake(call, kind, api_name, rule, got, hint))


@pytest.mark.parametrize(
    ("call", "name", "rule", "got", "hint"),
    [
        (
            lambda: radazo.projections.box(1, 0),
            "upper",
            ORDER,
            "(1, 0).",
            "Pass (lower, upper)",
        ),
        (
            lambda: radazo.projections.box("low", 0),
            "lower",
            BOX,
            "'low'.",
            "a leaf may be",
        ),
        (
            lambda: radazo.projections.box({"b": 0}, 1)(PAIR),
            "lower",
            BOX,
            "{'b': 0}.",
            "Its shapes are {'a': (2,)}",
        ),
        (
            lambda: radazo.projections.box(0, np.zeros(3))(PAIR["a"]),
            "upper",
            BOX,
            "array([0., 0., 0.]).",
            "Its shapes are (2,)",
        ),
        (
            lambda: radazo.projections.box({"a": np.ones(2)}, 0)(PAIR),
            "upper",
            ORDER,
            "({'a': array([1., 1.])}, 0).",
            "without NaN.",
        ),
    ],
)
def test_bounds_that_do_not_fit_are_explained(call, name, rule, got, hint):
    explained(Mistake(call, V, f"box({name}", rule, got, hint))
