"""ReLIZO: the same estimate as its pseudocode, and values that are really saved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo

WHERE = "interpolation_estimator"
N = 6
A = np.array([1.0, -2.0, 0.5, 3.0, -1.0])


def compiled(estimator):
    return jax.jit(functools.partial(radazo.estimate, estimator), static_argnums=1)


def linear(x):
    return jnp.dot(jnp.asarray(A, x.dtype), x) + 7


def bowl(x):
    scales = jnp.linspace(0.5, 2.0, x.size, dtype=x.dtype)
    return jnp.sum(scales * jnp.square(x - 1)) + jnp.sin(x[0])


class Transcription:
    """The pseudocode in float64, one list of (point, value) for a memory."""

    def __init__(self, smoothing, reuse_distance, max_reuse):
        self.smoothing, self.max_reuse = smoothing, max_reuse
        self.b = reuse_distance * smoothing
        self.memory = []

    def estimate(self, f, x, directions):
        """The gradient at x, and how many points were reused."""
        n = len(directions)
        y0 = f(x)
        close = [(p, y) for p, y in self.memory if 0 < np.linalg.norm(p - x) < self.b]
        close.sort(key=lambda pair: np.linalg.norm(pair[0] - x))
        reused = close[: int(n * self.max_reuse)]
        new = [x + self.smoothing * u for u in directions[len(reused) :]]
        pairs = reused + [(p, f(p)) for p in new]
        deltas = np.stack([p - x for p, _ in pairs])
        norms = np.linalg.norm(deltas, axis=1)
        u = deltas / norms[:, None]
        slopes = (np.array([y for _, y in pairs]) - y0) / norms
        self.memory = [*pairs, (x, y0)]
        return u.T @ np.linalg.pinv(u @ u.T) @ slopes, len(reused)


def drawn(key, x, num_directions=N):
    u = radazo.directions.sample_directions(
        key, x, radazo.directions.sphere, num_directions=num_directions
    )
    return np.asarray(u, np.float64)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("max_reuse", [0.5, 1.0])
def test_ten_steps_are_those_of_the_pseudocode(x64, max_reuse):
    options = {"smoothing": 0.02, "reuse_distance": 1.5, "max_reuse": max_reuse}
    estimator = radazo.interpolation_estimator(num_directions=N, **options)
    reference = Transcription(**options)
    calls = []

    def value_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return bowl(x)

    @jax.jit
    def estimate(key, x, state):
        return radazo.estimate(estimator, key, value_fn, x, state)

    f = jax.jit(bowl)
    x, state = jnp.zeros(12, jnp.float64), estimator.init(jnp.zeros(12, jnp.float64))
    counts = []
    for step in range(10):
        key = jax.random.key(step)
        before = len(calls)
        value, gradient, state, info = estimate(key, x, state)
        jax.effects_barrier()
        expected, reused = reference.estimate(
            lambda p: float(f(jnp.asarray(p))), np.asarray(x), drawn(key, x)
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(value, f(x), rtol=1e-12)
        assert info.num_values == len(calls) - before == 1 + N - reused
        counts.append(reused)
        # Long and short steps in turn: only after the short ones points are near.
        x = x - (3e-3 if step % 3 else 0.3) * gradient
    assert 0 in counts
    assert N // 2 in counts
    assert max(counts) == N if max_reuse == 1.0 else N // 2
    assert state.count == 10


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "sampler",
    [
        radazo.directions.sphere,
        radazo.directions.gaussian,
        radazo.directions.orthogonal,
    ],
)
def test_it_is_exact_for_linear_functions_once_the_directions_span(sampler):
    """With reused points among the rows, too."""
    estimator = radazo.interpolation_estimator(num_directions=5, sampler=sampler)

    def run(key):
        def step(carry, key):
            x, state = carry
            _, gradient, state, info = radazo.estimate(estimator, key, linear, x, state)
            return (x - 1e-3 * gradient, state), (gradient, info.num_values)

        start = jnp.zeros(5)
        carry = start, estimator.init(start)
        return jax.lax.scan(step, carry, jax.random.split(key, 4))[1]

    keys = jax.random.split(jax.random.key(0), 10)
    gradients, num_values = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys))
    # Rounding of f over the distance, times the condition of the rows: of those of a
    # random square matrix the median is near d.
    rounding = 8 * np.finfo(np.float32).eps / 5e-3
    errors = np.abs(gradients - A).max(axis=(1, 2))
    assert np.median(errors) < 100 * rounding
    assert np.all(num_values[:, 0] == 6)
    assert np.any(num_values[:, 1:] < 6)


def test_more_directions_than_dimensions_change_nothing_on_a_line(x64):
    estimator = radazo.interpolation_estimator(num_directions=9)
    x = jnp.zeros(5, jnp.float64)
    for seed in range(3):
        _, gradient, _, _ = jax.jit(
            functools.partial(radazo.estimate, estimator), static_argnums=1
        )(jax.random.key(seed), linear, x, estimator.init(x))
        np.testing.assert_allclose(gradient, A, rtol=1e-6, atol=1e-6)


def test_the_mean_of_fresh_estimates_is_the_share_of_the_gradient_in_the_span():
    """E g = (N / d) a: a projection on a uniformly random subspace."""
    d, n, seeds = 20, 5, 400
    a = jnp.linspace(-1.0, 1.0, d)
    estimator = radazo.interpolation_estimator(num_directions=n)

    def gradient(key):
        state = estimator.init(a)
        return radazo.estimate(estimator, key, lambda x: jnp.dot(a, x), 0 * a, state)[1]

    sample = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(1), seeds))
    error = sample.std(axis=0, ddof=1) / np.sqrt(seeds)
    assert np.all(np.abs(sample.mean(axis=0) - n / d * a) < 5 * error)
    assert np.all(np.linalg.norm(sample, axis=1) < np.linalg.norm(a))


@functools.cache
def a_run(reuse_distance, max_reuse):
    """Values taken in 40 short steps, and the last value."""
    estimator = radazo.interpolation_estimator(
        num_directions=8, reuse_distance=reuse_distance, max_reuse=max_reuse
    )
    optimizer = radazo.zo_sgd(5e-4, estimator, key=0)

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=bowl)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, optimizer.init(x)), length=40)[0]

    x, state = run(jnp.zeros(12))
    return int(state.num_values), float(bowl(x))


@pytest.mark.gate
def test_reuse_saves_values_and_more_distance_saves_more():
    none, reached = a_run(2.0, 0.0)
    some, reached_with_some = a_run(0.9, 0.5)
    many, _ = a_run(2.0, 0.5)
    assert none == 40 * 9
    assert many < some < none
    assert many == 9 + 39 * 5
    assert a_run(0.0, 0.5) == (none, reached)
    assert reached_with_some < bowl(jnp.zeros(12))


def test_the_true_displacement_of_a_rounded_point_is_what_counts():
    """In bfloat16 a step of 5e-3 from 1 is one of 0 or 2⁻⁸: still exact on a line."""
    x = jnp.array([1.0, -0.5, 0.25, 2.0, 0.01], jnp.bfloat16)
    estimator = radazo.interpolation_estimator(num_directions=40, smoothing=0.02)
    _, gradient, _, info = jax.jit(
        functools.partial(radazo.estimate, estimator), static_argnums=1
    )(
        jax.random.key(0),
        lambda x: jnp.dot(jnp.asarray(A, jnp.float32), x.astype(jnp.float32)),
        x,
        estimator.init(x),
    )
    assert np.any(info.kept)
    np.testing.assert_allclose(gradient.astype(np.float32), A, rtol=2**-7)


def test_a_point_without_a_finite_value_is_dropped_and_not_remembered():
    estimator = radazo.interpolation_estimator(num_directions=8, max_reuse=1.0)

    def value_fn(x):
        return jnp.where(x[0] > 0, jnp.float32(jnp.nan), linear(x))

    x = jnp.array([-1e-6, 1.0, 1.0, 1.0, 1.0])
    _, gradient, state, info = jax.jit(
        functools.partial(radazo.estimate, estimator), static_argnums=1
    )(jax.random.key(0), value_fn, x, estimator.init(x))
    assert 0 < np.sum(info.kept) < 8
    np.testing.assert_array_equal(state.usable[:-1], info.kept)
    assert np.all(np.isfinite(state.points))
    assert np.all(np.isfinite(state.values))
    assert np.all(info.slopes[~info.kept] == 0)
    assert np.any(gradient)


def test_a_centre_without_a_finite_value_leaves_the_memory_as_good_as_it_was():
    estimator = radazo.interpolation_estimator(num_directions=4, max_reuse=1.0)
    estimate = jax.jit(functools.partial(radazo.estimate, estimator), static_argnums=1)
    x = jnp.zeros(5)

    def value_fn(x):
        return jnp.where(jnp.any(x), linear(x), jnp.float32(jnp.inf))

    _, gradient, state, info = estimate(
        jax.random.key(0), value_fn, x, estimator.init(x)
    )
    assert not np.any(info.kept)
    np.testing.assert_array_equal(gradient, np.zeros(5))
    np.testing.assert_array_equal(state.usable, [True] * 4 + [False])
    _, gradient, _, info = estimate(jax.random.key(1), value_fn, x + 1e-4, state)
    assert info.num_values == 1
    assert np.all(info.kept)


def test_terms_are_subtracted_one_by_one_where_they_are_new():
    """Beside a constant of 1e4 the sum has a digit and a half of a difference."""
    sampler = radazo.directions.orthogonal

    def value_fn(x):
        return jnp.append(jnp.asarray(A, jnp.float32) * x, jnp.float32(1e4))

    def error(value_fn, *, terms):
        estimator = radazo.interpolation_estimator(
            num_directions=5, terms=terms, sampler=sampler
        )
        x = jnp.zeros(5)
        _, gradient, state, _ = jax.jit(
            functools.partial(radazo.estimate, estimator), static_argnums=1
        )(jax.random.key(0), value_fn, x, estimator.init(x))
        assert state.values.shape == (6,)
        return np.abs(gradient - A).max()

    assert error(value_fn, terms=True) < 1e-4
    assert error(lambda x: jnp.sum(value_fn(x)), terms=False) > 1e-2


def start():
    return {
        "a": jnp.array([[1.0, -2.0]], jnp.bfloat16),
        "b": (jnp.asarray(3.0), None),
        "frozen": jnp.ones(2),
    }


@pytest.mark.gate
def test_any_pytree_under_a_mask_in_a_mapped_scan():
    mask = {"a": True, "b": True, "frozen": False}
    estimator = radazo.interpolation_estimator(num_directions=3, mask=mask)
    optimizer = radazo.radazo(0.01, estimator, key=0)
    state = optimizer.init(start())

    @jax.jit
    def run(key_data):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                None, state, params, value_fn=half_sum_of_squares
            )
            return (optax.apply_updates(params, updates), state), None

        carry = start(), state._replace(key_data=key_data)
        return jax.lax.scan(step, carry, length=5)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(run)(jax.random.key_data(keys))
    alone = run(jax.random.key_data(keys[1]))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            np.asarray(x[1], np.float32), np.asarray(y, np.float32), rtol=2e-2
        ),
        together[0],
        alone[0],
    )
    np.testing.assert_array_equal(together[0]["frozen"], np.ones((3, 2)))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), alone[1]) == shapes
    assert state.estimator.points.shape == (4, 3)


@pytest.mark.gate
@pytest.mark.parametrize("check_vma", [True, False])
def test_seeds_or_data_may_vary_over_devices(check_vma):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("devices",))
    over, whole = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()
    estimator = radazo.interpolation_estimator(num_directions=3)
    x = jnp.zeros(5)

    def estimate(words, scale):
        key = jax.random.wrap_key_data(words[0])
        value_fn = lambda x: scale[0] * linear(x)
        return radazo.estimate(estimator, key, value_fn, x, estimator.init(x))[1][None]

    words = jax.random.key_data(jax.random.split(jax.random.key(0)))
    scale = jnp.array([1.0, 2.0])
    alone = jax.jit(estimate)
    for specs in ((over, whole), (whole, over)):
        sharded = jax.shard_map(
            estimate, mesh=mesh, in_specs=specs, out_specs=over, check_vma=check_vma
        )
        together = jax.jit(sharded)(words, scale)
        for i in range(2):
            first, second = (i * (spec == over) for spec in specs)
            expected = alone(words[first:][:1], scale[second:][:1])[0]
            np.testing.assert_allclose(together[i], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.gate
def test_outside_of_jit_only_new_points_are_evaluated():
    estimator = radazo.interpolation_estimator(num_directions=4)
    calls = []

    def value_fn(x):
        calls.append(1)
        return linear(x)

    x = jnp.zeros(5)
    _, _, state, first = radazo.estimate(estimator, 0, value_fn, x, estimator.init(x))
    assert first.num_values == len(calls) == 5
    _, _, _, second = radazo.estimate(estimator, 1, value_fn, x + 1e-4, state)
    assert second.num_values == len(calls) - 5 == 3


def test_it_is_refused_where_its_memory_would_be_thrown_away():
    with pytest.raises(ValueError, match="memoryless"):
        radazo.value_and_grad(linear, radazo.interpolation_estimator())


V, T = ValueError, TypeError
POSITIVE, NOT_BELOW = "be finite and greater than 0", "be finite and at least 0"
NEAR, SHARE = "It is in units of a new point's distance", "It is the share of points"
MISTAKES = {
    "no directions": ("num_directions", 0, V, "be at least 1", "10 is a good start."),
    "a negative distance": ("reuse_distance", -1.0, V, NOT_BELOW, NEAR),
    "a distance in words": ("reuse_distance", "near", T, "be a number", NEAR),
    "more than all": ("max_reuse", 1.5, V, "be in [0, 1]", SHARE),
    "less than none": ("max_reuse", -0.5, V, "be in [0, 1]", SHARE),
    "a sampler by name": (
        "sampler",
        "sphere",
        T,
        "be a DirectionSampler",
        "Pass a sampler",
    ),
    "no smoothing": ("smoothing", 0.0, V, POSITIVE, "It is the distance moved"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_explained(mistake):
    name, got, kind, rule, hint = mistake
    call = lambda: radazo.interpolation_estimator(**{name: got})
    explained(Mistake(call, kind, f"{WHERE}({name}", rule, repr(got), hint))
