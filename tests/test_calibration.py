"""What is calibrated is what the function has, by closed forms, and serves a run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Mistake, explained

import radazo
from radazo import directions, random
from radazo.calibration import line_probes

START = jax.random.normal(jax.random.key(1), (100,), jnp.float32)
PLAIN = 56  # Function values, where no distance is added or left out.


@jax.jit
def quadratic(x):
    return 2 * jnp.sum(jnp.square(x))


@jax.jit
def staircase(x):
    return jnp.sum(jnp.round(10 * jnp.abs(x - 1)))


def calibrated(value_fn=quadratic, params=START, key=0, **options):
    return radazo.calibrate(key, value_fn, params, **options)


def run(value_fn, found, params, key):
    estimator = radazo.sphere_estimator(smoothing=found.smoothing)
    optimizer = radazo.radazo(found.learning_rate, estimator, key=key)
    return radazo.minimize(value_fn, params, optimizer, 200, progress=False).params


def test_a_quadratic_has_its_closed_form(x64):
    params = START.astype(jnp.float64)
    found = [calibrated(params=params, key=key) for key in range(20)]
    one = found[0]
    variance = 99 / 10 * (1 + one.noise_share + one.curvature_share)
    np.testing.assert_allclose(one.curvature, 4, rtol=1e-6)
    np.testing.assert_allclose(one.learning_rate_zo_sgd, 0.25 / (1 + variance), 1e-6)
    np.testing.assert_allclose(one.reach, one.slope_spread / 4, 1e-6)
    np.testing.assert_allclose(
        [one.learning_rate_zo_adamm, one.learning_rate],
        one.reach
        * np.sqrt([1 + variance, 1 + variance / 19])
        / (2 * math.hypot(1 + variance, 20)),
        1e-6,
    )
    share = one.distance**2 * one.curvature**2 / 4 / one.slope_spread**2
    np.testing.assert_allclose(one.curvature_share, share, 1e-5)
    assert one.num_values == PLAIN
    squares = np.square([x.slope_spread for x in found])
    error = np.std(squares, ddof=1) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - 16 * np.mean(np.square(params))) < 4 * error
    # Curvature is a small part of a slope, and still one when slopes are a quarter.
    assert all(x.curvature_share < 0.02 for x in found)


def test_the_spread_of_second_differences_is_the_norm_of_the_hessian(x64):
    dim, num = 12, 40
    root = np.random.default_rng(0).normal(size=(dim, dim))
    hessian = root + root.T
    sampler, words = directions.sphere, random.key_data("test", 5)
    draw = jax.jit(jax.vmap(lambda k: sampler.draw(words, k, dim, jnp.float64)))
    u = np.asarray(draw(jnp.arange(400 * num, dtype=jnp.uint32)))
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    up = 0.5 * np.einsum("ni,ij,nj->n", u, hessian, u).reshape(400, num)
    found = [
        line_probes.summarize(
            {1.0: 7 + np.stack([one, one], axis=1)}, dim, 7.0, 0.0
        ).spread[0]
        for one in up
    ]
    found = np.square(found)
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    # The square of a mean of n is too large by the variance of the mean.
    trace, square = np.trace(hessian) / dim, np.sum(hessian**2) / dim
    excess = 2 / (dim + 2) * (square - trace**2) / num
    assert abs(np.mean(found) - square - excess) < 4 * error


@pytest.mark.parametrize("sigma", [1e-6, 1e-2])
def test_noise_is_told_from_the_function(sigma):
    draws = np.random.default_rng(3)
    places = np.linspace(0, 1e-3, line_probes.STENCIL)
    found = [
        line_probes.noise_of(
            np.exp(places) + sigma * draws.normal(size=line_probes.STENCIL)
        )
        for _ in range(200)
    ]
    assert 0.6 < np.median(found) / sigma < 1.2


def test_rounding_is_noise_and_a_straight_line_has_little(x64):
    found = calibrated(params=START)
    exact = calibrated(params=START.astype(jnp.float64))
    unit = float(np.spacing(np.float32(found.value)))
    assert 0.1 * unit < found.noise < 4 * unit
    assert exact.noise < 1e-7 * found.noise
    assert line_probes.noise_of(np.arange(7.0)) == 0.0


def test_rates_and_distances_follow_the_units(x64):
    params = START.astype(jnp.float64)
    one = calibrated(params=params)
    larger = calibrated(lambda x: 1e3 * quadratic(x), params)
    wider = calibrated(lambda x: quadratic(x / 50), 50 * params)
    for name, by_value, by_length in (
        ("smoothing", 1, 50),
        ("learning_rate", 1, 50),
        ("learning_rate_zo_adamm", 1, 50),
        ("learning_rate_zo_sgd", 1e-3, 2500),
    ):
        before = getattr(one, name)
        np.testing.assert_allclose(getattr(larger, name), by_value * before, 1e-3)
        np.testing.assert_allclose(getattr(wider, name), by_length * before, 1e-3)


@pytest.mark.parametrize(
    "sampler", [radazo.directions.gaussian, radazo.directions.rademacher]
)
def test_smoothing_is_in_units_of_the_sampler(sampler):
    one, other = calibrated(), calibrated(sampler=sampler)
    np.testing.assert_allclose(one.smoothing, 10 * other.smoothing, 1e-6)
    assert one.learning_rate == other.learning_rate
    assert one.distance == other.distance == one.smoothing


def test_a_python_function_is_called_as_it_is_and_counted():
    """With NumPy, leaves that are no parameters, and a mask: never traced."""
    params = {"w": START, "frozen": START, "n": 3, "name": None}
    calls = []

    def value_fn(params):
        calls.append(params)
        assert isinstance(params["n"], int)
        np.testing.assert_array_equal(params["frozen"], START)
        return float(np.sum(np.square(np.asarray(params["w"])))) * 2

    mask = {"w": True, "frozen": False, "n": False, "name": None}
    found = radazo.calibrate(0, value_fn, params, mask=mask)
    assert found.num_values == len(calls) == PLAIN
    assert found.dim == 100
    np.testing.assert_array_equal(params["w"], START)
    alone = calibrated()
    np.testing.assert_allclose(found.learning_rate, alone.learning_rate, 1e-2)


def test_noise_takes_longer_distances_and_central_ones_longer_still(x64):
    params = START.astype(jnp.float64)
    draws = np.random.default_rng(0)

    def noisy(x):
        return float(quadratic(x)) + 0.3 * draws.normal()

    still = calibrated(params=params)
    forward = [radazo.calibrate(key, noisy, params) for key in range(10)]
    central = [
        radazo.calibrate(key, noisy, params, difference=radazo.central)
        for key in range(10)
    ]
    told = np.median([x.noise for x in forward])
    assert 0.15 < told < 0.6
    distances = [np.median([x.distance for x in xs]) for xs in (forward, central)]
    assert still.distance < distances[0] < distances[1]
    shares = [np.median([x.noise_share for x in xs]) for xs in (forward, central)]
    assert shares[1] < shares[0]


@pytest.mark.gate
def test_a_staircase_is_seen_across():
    params = jnp.zeros(100)
    for key in range(3):
        found = calibrated(staircase, params, key, num_steps=200)
        # In an element: the edge of a stair is 0.05 away, the lowest one lies at 1.
        assert found.distance / 10 > 0.02
        assert 0.3 < found.reach < 3
        assert staircase(run(staircase, found, params, key)) < 700


def test_what_lies_far_from_zero_is_found(x64):
    params = 1e4 + START.astype(jnp.float64)
    found = calibrated(lambda x: quadratic(x - 1e4), params)
    np.testing.assert_allclose(found.reach, np.std(START), rtol=0.5)
    assert found.num_values > PLAIN
    # It fails where nothing but the size of the parameters is known.
    assert found.distance < 1


def test_where_there_is_no_value_far_away_it_looks_closer():
    value_fn = lambda x: jnp.where(jnp.max(jnp.abs(x)) < 2, quadratic(x), jnp.nan)
    found = calibrated(value_fn, jnp.full(100, 1.0))
    np.testing.assert_allclose(found.curvature, 4, rtol=0.05)
    assert math.isfinite(found.learning_rate)


def test_zeros_and_half_precision():
    found = calibrated(lambda x: quadratic(x - 1), jnp.zeros(100))
    assert 0.4 < found.reach < 2.5
    half = calibrated(
        lambda x: quadratic(x.astype(jnp.float32)), START.astype("bfloat16")
    )
    # An element moves by more than the spacing of its numbers.
    assert half.distance / 10 > float(jnp.finfo(jnp.bfloat16).eps)
    assert 0.2 < half.learning_rate / calibrated().learning_rate < 5


def test_one_parameter():
    found = calibrated(params=jnp.array([3.0]))
    np.testing.assert_allclose(found.learning_rate_zo_sgd, 0.25, 1e-2)


def test_longer_runs_get_lower_rates():
    short, long = calibrated(num_steps=10), calibrated(num_steps=1000)
    assert calibrated().share == 0.5
    v = 9.9 * (1 + short.noise_share + short.curvature_share)
    np.testing.assert_allclose(short.share, 1 / (1 + 10 / 3 / math.hypot(1 + v, 20)))
    ratio = long.learning_rate / short.learning_rate
    np.testing.assert_allclose(ratio, long.share / short.share, 1e-6)
    assert long.learning_rate_zo_sgd == short.learning_rate_zo_sgd


def test_the_plain_rate_is_below_the_limit_of_stability_if_one_direction_is_steep(x64):
    """Of f = λ/2 (a·x)², where x shrinks if rate · λ · E[(Σ(a·u)²)²] d²/K² < 2."""
    dim, steep = 40, 1e3
    a = np.random.default_rng(0).normal(size=dim)
    a = jnp.asarray(a / np.linalg.norm(a))
    value_fn = jax.jit(lambda x: steep / 2 * jnp.square(a @ x))
    limit = 2 / steep / (1 + 2 * (dim - 1) / (dim + 2) / 10)
    params = jax.random.normal(jax.random.key(3), (dim,), jnp.float64)
    found = [calibrated(value_fn, params, key) for key in range(100)]
    rates = np.array([x.learning_rate_zo_sgd for x in found])
    # Of six directions none may be near the steep one.
    assert np.mean(rates < limit) > 0.9
    assert np.median(rates) > limit / 20


def quartic(x):
    return jnp.sum(x**4 - 16 * x**2 + 5 * x) / 2


def zakharov(x):
    s = 0.5 * jnp.sum(jnp.arange(1, x.size + 1, dtype=x.dtype) * x)
    return jnp.sum(x**2) + s**2 + s**4


SCALES = 10.0 ** np.linspace(0, 6, 40)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "value_fn",
    [
        zakharov,
        quartic,
        lambda x: jnp.sum(SCALES * x**2),
        lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
        lambda x: 10 * x.size + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x)),
        lambda x: jnp.sum(jnp.floor(x + 0.5) ** 2),
    ],
    ids=["zakharov", "quartic", "ill-conditioned", "rosenbrock", "rastrigin", "stairs"],
)
def test_zo_sgd_at_its_rate_ends_below_the_start(value_fn):
    num, steps = 8, 600
    starts = jax.random.uniform(jax.random.key(0), (num, 40), jnp.float32, -4, 4)
    one = jax.jit(value_fn)
    found = [calibrated(one, x, key) for key, x in enumerate(starts)]
    norms = np.linalg.norm(starts, axis=1)
    assert all(x.distance < norm for x, norm in zip(found, norms, strict=True))
    if value_fn is quartic:  # Its slopes grow with the distance.
        assert all(x.distance < norm / 10 for x, norm in zip(found, norms, strict=True))

    @jax.jit
    @jax.vmap
    def ends(x, smoothing, rate, key):
        estimator = radazo.sphere_estimator(smoothing=smoothing)
        optimizer = radazo.zo_sgd(rate, estimator, key=key)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=value_fn)
            return (x + updates, state), None

        carry, _ = jax.lax.scan(step, (x, optimizer.init(x)), length=steps)
        return value_fn(x), value_fn(carry[0])

    rates = jnp.array([x.learning_rate_zo_sgd for x in found])
    smoothing = jnp.array([x.smoothing for x in found])
    before, after = ends(
        starts, smoothing, rates, jax.random.split(jax.random.key(1), num)
    )
    assert np.all(after < before)


def rising(first, last):
    """The quadratic, but infinite in the calls `first` to `last`."""
    calls = []

    def value_fn(x):
        calls.append(1)
        return math.inf if first <= len(calls) <= last else float(quadratic(x))

    return value_fn


def test_a_step_after_which_f_rises_is_shortened():
    plain, two = calibrated(), calibrated(rising(PLAIN, PLAIN + 1))
    assert two.num_values == PLAIN + 2
    for name in ("learning_rate", "learning_rate_zo_adamm", "learning_rate_zo_sgd"):
        np.testing.assert_allclose(getattr(two, name), getattr(plain, name) / 16, 1e-5)
    assert two.smoothing == plain.smoothing


def test_it_warns_of_what_is_not_to_be_relied_on():
    with pytest.warns(UserWarning, match="found no step along an estimate that lowers"):
        none = calibrated(rising(PLAIN, PLAIN + 3))
    assert none.num_values == PLAIN + 3
    np.testing.assert_allclose(none.learning_rate, calibrated().learning_rate, 1e-5)
    with pytest.warns(UserWarning, match="further than the norm of `params`, 0.0"):
        found = calibrated(staircase, 0.005 * START)
    assert found.distance > np.linalg.norm(0.005 * START)


@pytest.mark.gate
def test_asked_again_during_a_run_it_goes_on_where_the_first_rate_stays():
    first = calibrated()
    reached = run(quadratic, first, START, 0)
    assert quadratic(reached) < 0.1 * quadratic(START)
    again = calibrated(params=reached)
    assert again.learning_rate < 0.5 * first.learning_rate
    low, high = (quadratic(run(quadratic, x, reached, 1)) for x in (again, first))
    assert low < 0.3 * high


def test_printed_it_says_what_was_chosen_and_why():
    found = calibrated()
    text = str(found)
    assert f"smoothing {found.smoothing:.3g}:" in text
    assert f"learning_rate {found.learning_rate:.3g} for radazo" in text
    assert f"{found.learning_rate_zo_adamm:.3g} for zo_adamm and zo_rmsprop" in text
    assert f"{found.learning_rate_zo_sgd:.3g} for zo_sgd" in text
    assert f"moved by {found.reach:.3g}" in text
    assert "10 directions in 100 dimensions" in text
    assert f"from 56 function values near {found.value:.6g}" in text
    assert all(isinstance(x, int | float) for x in found)


T, V = TypeError, ValueError
OF_CALLS = {
    "no function": ({"value_fn": 3}, T, "value_fn", "be a function", "3.", "It takes"),
    "not the sampler": (
        {"sampler": "sphere"},
        T,
        "sampler",
        "be a DirectionSampler",
        "'sphere'.",
        "radazo.directions.sphere",
    ),
    "nothing to move": (
        {"params": jnp.zeros(0)},
        V,
        "params",
        "have elements to move",
        "none among the leaves.",
        "Pass floating-point arrays with elements.",
    ),
    "no directions": (
        {"num_directions": 0},
        V,
        "num_directions",
        "be at least 1",
        "0.",
        "More directions give a better estimate; 10 is a good start.",
    ),
    "another difference": (
        {"difference": radazo.forward_mode},
        V,
        "difference",
        "be `radazo.forward` or `radazo.central`",
        "radazo.differences.forward_mode.",
        "choose the smoothing by hand",
    ),
    "no steps": (
        {"num_steps": 0},
        V,
        "num_steps",
        "be at least 1",
        "0.",
        "omit it if unknown",
    ),
    "half a step": (
        {"num_steps": 0.5},
        T,
        "num_steps",
        "be an integer",
        "0.5.",
        "omit it if unknown",
    ),
    "no key": (
        {"key": "a"},
        T,
        "key",
        "be a key or an integer seed",
        "'a'.",
        "Pass `jax.random.key",
    ),
    "a vector": (
        {"value_fn": lambda x: x},
        T,
        "value_fn",
        "return a real number",
        "a ArrayImpl",
        "Return a scalar, without `aux` and terms.",
    ),
    "a pair": (
        {"value_fn": lambda x: (x, x[:3])},
        T,
        "value_fn",
        "return a real number",
        "a tuple",
        "without `aux`",
    ),
    "a complex number": (
        {"value_fn": lambda x: 1j},
        T,
        "value_fn",
        "return a real number",
        "a complex: 1j.",
        "Return a scalar",
    ),
    "nan at the start": (
        {"value_fn": lambda x: math.nan},
        V,
        "value_fn",
        "be finite at `params`",
        "nan.",
        "Start where f has a value.",
    ),
    "a constant": (
        {"value_fn": lambda x: 7.0},
        V,
        "value_fn",
        "have slopes that are significant",
        "values near 7 with a noise of 2.6e-16, and no slopes within a distance of 5",
        "Start where f is not level, or average several values.",
    ),
}


@pytest.mark.parametrize("name", OF_CALLS)
def test_a_mistake_is_explained(name):
    options, kind, argument, rule, got, hint = OF_CALLS[name]
    given = {"value_fn": quadratic, "key": 0, "params": START, **options}
    call = lambda: radazo.calibrate(**given)
    explained(Mistake(call, kind, f"calibrate({argument}", rule, got, hint))


def test_a_jitted_function_that_jax_cannot_trace_is_explained():
    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        calibrated(jax.jit(lambda x: float(np.sum(np.asarray(x)))))
    assert any("`calibrate(value_fn=...)`" in note for note in caught.value.__notes__)
