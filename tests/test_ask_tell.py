"""Steps whose function is evaluated elsewhere, by `ask` and `tell`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import raises

import radazo

PARAMS = {"a": jnp.linspace(0.0, 1.0, 37), "b": jnp.ones((4, 5))}


def oracle(params):
    a, b = (np.asarray(params[name]) for name in ("a", "b"))
    return np.float32(np.sum((a - 1) ** 2) + np.sum(np.cos(b)))


def stepped(optimizer, params, state, given):
    updates, state = optimizer.update(None, state, params, value_fn=given)
    return optax.apply_updates(params, updates), state


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def sgd(**options):
    estimator = radazo.gaussian_estimator(num_directions=4, **options)
    return radazo.zo_sgd(0.1, estimator, key=1)


def test_missing_values_drop_their_directions_and_late_ones_are_ignored():
    optimizer = sgd()
    start = PARAMS, optimizer.init(PARAMS)
    ids, point, _ = radazo.ask(optimizer, *start)
    values = {id_: oracle(point(id_)) for id_ in ids}
    some = {id_: values[id_] for id_ in ids if id_.index not in (2, 3)}
    params, state = radazo.tell(optimizer, *start, some)
    assert (state.num_dropped, state.num_skipped, state.count) == (2, 0, 1)
    array = np.array([values[id_] for id_ in ids])
    array[2:4] = np.nan
    assert_same_bits(radazo.tell(optimizer, *start, array), (params, state))
    # Late: values of the step before count for nothing; without f(x) no slope is known.
    _, after = radazo.tell(optimizer, params, state, values)
    assert (after.num_skipped, after.count) == (1, 2)


@pytest.mark.gate
def test_a_worker_makes_its_point_of_the_id_alone_whatever_other_points_there_are():
    optimizer = sgd(difference=radazo.central)
    start = PARAMS, optimizer.init(PARAMS)
    ids, point, _ = radazo.ask(optimizer, *start)
    assert ids == [(0, i) for i in range(8)]
    moved = [np.asarray(point((0, i))["a"]) - np.asarray(PARAMS["a"]) for i in (6, 7)]
    np.testing.assert_allclose(moved[0], -moved[1], atol=1e-6)
    own = radazo.directions.sample_directions(
        jax.random.fold_in(jax.random.key(1), 0),
        PARAMS,
        radazo.directions.gaussian,
        num_directions=4,
    )
    np.testing.assert_allclose(moved[0], 5e-3 * own["a"][3], atol=1e-6)


def test_points_of_a_million_parameters_are_made_one_by_one():
    optimizer = radazo.zo_sgd(0.1, radazo.gaussian_estimator(num_directions=64), key=0)
    params = jnp.zeros(10**6)
    state = optimizer.init(params)
    before = len(jax.live_arrays())
    ids, point, _ = radazo.ask(optimizer, params, state)
    norms = [float(jnp.linalg.norm(point(id_))) for id_ in (ids[0], ids[1], ids[64])]
    assert len(ids) == 65
    assert len(jax.live_arrays()) <= before + 1
    # The norm of a Gaussian of a million elements is 1000 within 0.7 (one deviation).
    np.testing.assert_allclose(norms, [0, 5, 5], atol=5e-3 * 4)


def test_tell_takes_terms_as_rows():
    optimizer = sgd(terms=True)
    start = jnp.arange(3.0), optimizer.init(jnp.arange(3.0))
    ids, point, _ = radazo.ask(optimizer, *start)
    rows = [(np.asarray(point(id_)) - 1) ** 2 for id_ in ids]
    after = radazo.tell(optimizer, *start, np.stack(rows))
    run = jax.jit(functools.partial(stepped, optimizer, given=lambda x: (x - 1) ** 2))
    np.testing.assert_allclose(after[0], run(*start)[0], rtol=1e-4)
    mapping = dict(zip(ids, rows, strict=True))
    assert_same_bits(radazo.tell(optimizer, *start, mapping), after)


def test_values_keep_their_own_type(x64):
    optimizer = sgd()
    params = np.arange(3, dtype=np.float32)
    start = params, optimizer.init(params)
    after = [
        radazo.tell(optimizer, *start, (1 + 1e-9 * np.arange(5)).astype(dtype))[0]
        for dtype in (np.float32, np.float64)
    ]
    assert after[0].dtype == after[1].dtype == np.float32
    np.testing.assert_array_equal(after[0], params)  # All values are 1 in float32.
    assert np.any(after[1] != params)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("difference", [radazo.forward, radazo.central])
@pytest.mark.parametrize("make", [radazo.zo_sgd, radazo.zo_signsgd])
def test_float64_values_are_subtracted_in_their_digits_without_x64(make, difference):
    """A million, in which float32 has steps of 0.06: slopes are those without it."""
    estimator = radazo.gaussian_estimator(num_directions=4, difference=difference)
    optimizer = make(0.1, estimator, key=0)
    start = jnp.arange(3.0), optimizer.init(jnp.arange(3.0))
    ids, point, _ = radazo.ask(optimizer, *start)
    values = [np.sum((np.asarray(point(id_), np.float64) - 1) ** 2) for id_ in ids]
    small, large = np.array(values), 1e6 + np.array(values)
    expected = radazo.tell(optimizer, *start, small)[0]
    found, state = radazo.tell(optimizer, *start, large)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(state.last_value, 1e6 + 2, rtol=1e-6)
    rounded = radazo.tell(optimizer, *start, large.astype(np.float32))[0]
    assert np.max(np.abs(rounded - expected)) > 1e-2
    mapping = dict(zip(ids, large, strict=True))
    assert_same_bits(radazo.tell(optimizer, *start, mapping)[0], found)


def test_float64_values_that_are_float32_give_its_step():
    optimizer = sgd()
    start = jnp.arange(3.0), optimizer.init(jnp.arange(3.0))
    values = np.float32([2.1, np.nan, 2.3, np.inf, 2.0])
    after = [radazo.tell(optimizer, *start, x) for x in (values, values.astype(float))]
    assert_same_bits(*after)
    assert after[0][1].num_dropped == 2
    beyond = radazo.tell(
        optimizer, *start, np.where(np.isinf(values), 1e300, values.astype(float))
    )
    assert_same_bits(beyond, after[0])


@pytest.mark.parametrize(
    "kind", [jnp.bfloat16, jnp.float16, jnp.float32, np.float64, np.int8, int, float]
)
def test_values_are_numbers_of_any_type(kind):
    optimizer = sgd()
    start = jnp.arange(3.0), optimizer.init(jnp.arange(3.0))
    ids, _, _ = radazo.ask(optimizer, *start)
    numbers = [3, 4, None, 5, np.nan if kind in {float, jnp.float32} else None]
    mapping = {
        id_: x if x is None else kind(x) for id_, x in zip(ids, numbers, strict=True)
    }
    after = radazo.tell(optimizer, *start, mapping)
    expected = np.float32([3, 4, np.nan, 5, np.nan])
    assert_same_bits(after, radazo.tell(optimizer, *start, expected))
    assert after[1].num_dropped == 2


def test_a_number_beyond_64_bits_is_one():
    optimizer = sgd()
    start = jnp.arange(3.0), optimizer.init(jnp.arange(3.0))
    values = dict.fromkeys(radazo.ask(optimizer, *start).ids, 1.0)
    for large, num_dropped in ((10**30, 0), (10**400, 1)):
        values[0, 2] = large
        assert radazo.tell(optimizer, *start, values)[1].num_dropped == num_dropped


def test_what_is_not_perturbed_stays_as_it_is(of_users):
    optimizer = sgd()
    params = {
        "x": np.ones(2, np.float32),
        "n": np.array([1, 2]),
        "scale": 2.0,
        "z": None,
    }
    start = params, optimizer.init(params)
    ids, point, _ = radazo.ask(optimizer, *start)
    after, _ = radazo.tell(optimizer, *start, np.arange(5, dtype=np.float32))
    for tree in (point(ids[1]), after):
        np.testing.assert_array_equal(tree["n"], [1, 2])
        assert (tree["scale"], tree["z"]) == (2.0, None)
        assert np.any(tree["x"] != 1)


def test_values_of_tell_pass_through_every_form():
    values = np.array([3.0, 4.0, 5.0], np.float32)
    estimator = radazo.gaussian_estimator(num_directions=2)
    link = optax.chain(radazo.estimate_gradient(estimator, 0), optax.scale(-0.1))
    around = radazo.with_estimator(estimator, optax.sgd(0.1), 0)
    x = jnp.ones(3)
    moved = [radazo.tell(form, x, form.init(x), values)[0] for form in (link, around)]
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-6)
    assert jnp.all(moved[0] != x)


def wrong(call, *parts, kind=ValueError):
    return pytest.param(call, kind, parts, id=parts[1][:40])


def arguments(make=sgd, params=PARAMS):
    optimizer = make()
    return optimizer, params, optimizer.init(params)


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        wrong(
            lambda: radazo.ask(*arguments(lambda: sgd(difference=radazo.forward_mode))),
            "`finite_difference_estimator(difference=",
            "take values at known points",
            "radazo.forward",
        ),
        wrong(
            lambda: radazo.tell(
                *arguments(lambda: sgd(difference=radazo.forward_mode)),
                np.zeros(4, np.float32),
            ),
            "`finite_difference_estimator(difference=",
            "take values at known points",
        ),
        wrong(
            lambda: radazo.ask(*arguments(lambda: optax.sgd(0.1))),
            "`ask(optimizer=",
            "have one estimator in it; got one whose state has 0",
        ),
        wrong(
            lambda: radazo.ask(*arguments()).point((0, 5)),
            "`point(id_=",
            "be one of the 5 of step 0; got (0, 5)",
            "Ask after each `tell`",
        ),
        wrong(
            lambda: radazo.tell(*arguments(), {(1, 0): 1.0}),
            "`tell(values=",
            "have keys of step 0 (or before) with an index below 5; got (1, 0)",
        ),
        wrong(
            lambda: radazo.tell(*arguments(), {0: 1.0}),
            "`tell(values=",
            "have keys of step 0 (or before)",
        ),
        wrong(
            lambda: radazo.tell(*arguments(), {(0, 1): "a"}),
            "`tell(values=",
            "be real numbers; got a str: 'a'",
            "or pass None; in an array",
            kind=TypeError,
        ),
        wrong(
            lambda: radazo.tell(*arguments(), {(0, 1): True}),
            "`tell(values=",
            "be real numbers; got a bool: True",
            kind=TypeError,
        ),
        wrong(
            lambda: radazo.tell(*arguments(), [1.0, None, 2.0, 3.0, 4.0]),
            "`tell(values=",
            "be real numbers; got a list: [1.0, None",
            "in an array, pass NaN",
            kind=TypeError,
        ),
        wrong(
            lambda: radazo.tell(*arguments(), {(0, 0): 1.0, (0, 1): np.ones(1)}),
            "`tell(values=",
            "be of one shape: numbers, or rows of terms; got shapes [(), (1,)]",
        ),
        wrong(
            lambda: radazo.tell(*arguments(), np.zeros(4)),
            "`tell(values=",
            "have 5 entries and no other axis; got shape (4,)",
            "NaN for a missing one",
        ),
        wrong(
            lambda: radazo.tell(*arguments(), np.zeros((5, 2))),
            "`tell(values=",
            "have 5 entries and no other axis; got shape (5, 2)",
        ),
        wrong(
            lambda: radazo.tell(*arguments(lambda: sgd(terms=True)), np.zeros((4, 2))),
            "`tell(values=",
            "have 5 entries and further axes of terms; got shape (4, 2)",
        ),
    ],
)
def test_a_wrong_question_or_answer_is_refused(call, kind, parts):
    with raises(kind, *parts):
        call()
