"""SignHunter: its algorithm in NumPy, and what the search promises of its box."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contracts_optimizers import described

import radazo

# A plain transcription of the algorithm, in signs of one flat vector.

DIM, NUM_STEPS, NUM_PROBLEMS = 11, 70, 6  # All blocks are 30; the third pass has begun.
LOWER, UPPER = -0.5, 1.5


def blocks(dim):
    """The elements of every block of a pass, from all of them down to single ones."""
    level = 0
    while True:
        length = int(np.ceil(dim / 2**level))
        for begin in range(0, dim, length):
            yield slice(begin, min(begin + length, dim))
        if length == 1:
            return
        level += 1


def sign_hunter(f, x, num_steps):
    """x after each step, f(x) before each step, and the number of passes."""
    xs, befores = [x], [f(x)]  # Step 0.
    s = np.where(UPPER - x <= x - LOWER, 1, -1)
    of_signs = lambda s: (LOWER + UPPER) / 2 + s * (UPPER - LOWER) / 2
    xs, befores = [*xs, of_signs(s)], [*befores, f(x)]  # Step 1.
    best, num_passes = f(xs[-1]), 0
    while True:
        num_passes += 1
        for block in blocks(len(x)):
            if len(xs) == num_steps:
                return xs, befores, num_passes
            befores.append(best)
            s[block] *= -1
            if f(of_signs(s)) < best:
                best = f(of_signs(s))
            else:
                s[block] *= -1
            xs.append(of_signs(s))


def coupled(x, matrix, offset):
    """A quadratic function whose values at the start and at vertices are exact."""
    return x @ (matrix @ x) + offset @ x


def problems():
    rng = np.random.default_rng(0)
    shape = NUM_PROBLEMS, DIM
    matrices = rng.integers(-3, 4, (*shape, DIM)).astype(np.float32)
    offsets = rng.integers(-9, 10, shape).astype(np.float32)
    starts = rng.integers(-4, 9, shape).astype(np.float32) / 4
    starts[0] = (LOWER + UPPER) / 2
    return matrices, offsets, starts


def unflatten(x):
    return {"a": x[:6].reshape(2, 3), "b": (x[6], None, x[7:])}


def flatten(tree):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def scanned(optimizer, value_fn, params, num_steps):
    """The flat parameters after each step, values and counts, of one run."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), (flatten(params), state.last_value, state.num_values)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[1]


def test_runs_of_a_batch_of_problems_are_the_algorithm_in_numpy():
    optimizer = radazo.sign_search(LOWER, UPPER)

    @jax.jit
    @jax.vmap
    def run(matrix, offset, start):
        value_fn = lambda params: coupled(flatten(params), matrix, offset)
        return scanned(optimizer, value_fn, unflatten(start), NUM_STEPS)

    found = run(*problems())
    rows = zip(*problems(), strict=True)
    for problem, xs, values, counts in zip(rows, *found, strict=True):
        matrix, offset, start = (x.astype(float) for x in problem)
        f = functools.partial(coupled, matrix=matrix, offset=offset)
        wanted, befores, num_passes = sign_hunter(f, start, NUM_STEPS)
        assert num_passes == 3
        np.testing.assert_array_equal(xs, wanted)
        np.testing.assert_array_equal(values, befores)
        np.testing.assert_array_equal(counts, np.arange(NUM_STEPS) + 1)
    assert len({tuple(x) for x in np.asarray(found[0][:, -1])}) == NUM_PROBLEMS


def test_boxes_of_a_batch_are_traced():
    lower, upper = jnp.array([[-1.0, -0.5, 0.0], [0.0, 0.0, 0.25]]), jnp.ones((2, 3))
    value_fn = lambda x: jnp.sum((x - 0.75) ** 2)

    def run(lower, upper):
        optimizer = radazo.sign_search(lower, upper)
        return scanned(optimizer, value_fn, jnp.zeros(3), 12)[0][-1]

    found = jax.jit(jax.vmap(run))(lower, upper)
    np.testing.assert_array_equal(found, np.ones((2, 3)))
    of_pairs = jax.jit(jax.vmap(lambda u: run(-1.0, {"x": u}["x"])))(upper)
    np.testing.assert_array_equal(of_pairs, np.ones((2, 3)))


# Other ways to run it.


def rough(params):
    """A function with kinks, whose values on START and on vertices are exact."""
    x = flatten(params)
    return jnp.sum(jnp.abs(x)) + 2 * jnp.abs(jnp.sum(x) - 1) + x[0] * x[-1]


START = unflatten(jnp.arange(-4.0, DIM - 4) / 8)


def assert_same_run(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_ask_and_tell_a_journal_and_a_resumed_run_are_minimize(tmp_path):
    optimizer = radazo.sign_search(LOWER, UPPER)
    whole = radazo.minimize(rough, START, optimizer, 40)
    assert whole.values[0] == rough(START)
    assert np.all(np.diff(whole.values[2:]) <= 0)
    np.testing.assert_array_equal(whole.num_values, np.arange(40) + 1)
    assert whole.state.estimator.params_value == rough(whole.params)

    params, state = START, optimizer.init(START)
    for _ in range(40):
        queries = radazo.ask(optimizer, params, state)
        (id_,) = queries.ids
        told = {id_: np.float32(rough(queries.point(id_)))}
        params, state = radazo.tell(optimizer, params, state, told)
    assert_same_run((params, state), (whole.params, whole.state))

    path = tmp_path / "journal"
    kept = radazo.minimize(rough, START, optimizer, 40, journal=path)
    assert_same_run(kept.params, whole.params)
    again = radazo.journal.replay(path, optimizer, START)
    assert_same_run(again, (kept.params, kept.state))

    for num_steps in (17, 40):
        halves = radazo.minimize(
            rough, START, optimizer, num_steps, checkpoints=tmp_path / "kept"
        )
    assert_same_run(halves, whole)
    first = radazo.minimize(rough, START, optimizer, 17)
    more = radazo.minimize(rough, first.params, optimizer, 23, state=first.state)
    assert_same_run((more.params, more.state), (whole.params, whole.state))


def test_a_run_ends_at_the_parameters_of_the_value_or_by_itself():
    signs = jnp.resize(jnp.array([1.0, -1.0]), DIM)
    value_fn = lambda params: flatten(params) @ signs
    minimize = functools.partial(
        radazo.minimize, value_fn, START, radazo.sign_search(LOWER, UPPER)
    )
    for options in ({"target": -4.0}, {"stop": lambda value, params: value <= -4}):
        result = minimize(**options)
        assert result.status in ("target", "stopped")
        assert value_fn(result.params) == result.values[-1] <= -4 < result.values[-2]
    result = minimize()
    assert result.status == "converged"
    lowest = np.where(signs > 0, LOWER, UPPER)
    np.testing.assert_array_equal(flatten(result.params), lowest)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_what_is_told_is_what_the_parameters_are_and_they_stay_inside(dtype):
    lower = {"x": -0.3, "fixed": 0.5, "frozen": -np.inf, "int": 0}
    upper = {"x": np.linspace(0.1, 0.7, 5), "fixed": 0.5, "frozen": np.inf, "int": 9}
    params = {"x": jnp.linspace(-60, 60, 5, dtype=dtype), "fixed": jnp.ones(2, dtype)}
    params |= {"frozen": -jnp.zeros(1, dtype), "int": jnp.arange(3)}
    mask = {"x": True, "fixed": True, "frozen": False, "int": True}
    optimizer = radazo.sign_search(lower, upper, mask=mask)
    start, state, best = params, optimizer.init(params), np.inf
    value_fn = lambda params: np.sum(np.float32(params["x"]) * [1, -1, 1, 1, -1])
    for t in range(14):
        queries = radazo.ask(optimizer, params, state)
        point = queries.point(queries.ids[0])
        value = np.float32(value_fn(point))
        params, state = radazo.tell(optimizer, params, state, [value])
        if value < best or t == 1:
            assert_same_run(params, point)
            best = value
        if t:
            x = np.asarray(params["x"], np.float64)
            assert np.all((x >= lower["x"]) & (x <= upper["x"]))
            assert np.all(np.asarray(params["fixed"], np.float64) == 0.5)
        assert described(params) == described(start)
        for name in ("frozen", "int"):
            assert params[name].tobytes() == start[name].tobytes()
    near = np.where(np.array([1, -1, 1, 1, -1]) > 0, lower["x"], upper["x"])
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(params["x"]), near, rtol=2 * eps)


def test_no_value_that_is_not_finite_is_taken():
    bad = jnp.array([jnp.nan, jnp.inf, -jnp.inf])

    def value_fn(x):  # Defined where an even number of elements are at the upper bound.
        num_up = jnp.sum(x > 0, dtype=jnp.int32)
        return jnp.where(num_up % 2, bad[num_up % 3], jnp.sum(x))

    for start in (jnp.zeros(5), jnp.full(5, -0.1).at[0].set(-0.9)):
        result = radazo.minimize(value_fn, start, radazo.sign_search(-1.0, 1.0), 25)
        assert np.isfinite(value_fn(result.params))
        assert result.state.num_dropped == result.state.num_skipped > 0
        assert result.state.num_values == 25
        assert np.all(result.params == -1)


def test_parameters_without_elements_are_left_alone():
    for params in ((), {"x": jnp.zeros((0, 2)), "y": None}):
        optimizer = radazo.sign_search(-1.0, 1.0)
        result = radazo.minimize(lambda params: jnp.float32(3), params, optimizer, 3)
        assert_same_run(result.params, params)
        assert result.num_values[-1] == 3
