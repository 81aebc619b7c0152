"""What holds for any parameters and any arguments that are allowed."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import PRESETS
from hypothesis import Phase, given, settings

import radazo

# Every new shape and every new estimator compiles: few of each, the same at every run.
SHAPES = [(), (0,), (3,), (2, 2)]
FLOATS = ["float16", "bfloat16", "float32"]
SAMPLERS = {
    "sphere": radazo.directions.sphere,
    "gaussian": radazo.directions.gaussian,
    "rademacher": radazo.directions.rademacher,
    "coordinate": radazo.directions.coordinate,
    "orthogonal": radazo.directions.orthogonal,
}
# Without shrinking: it would compile for minutes to make a small example smaller.
properties = settings(
    derandomize=True,
    deadline=None,
    max_examples=6,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
costly = settings(properties, max_examples=4)
seeds = st.integers(0, 2**31 - 1)
names = st.sampled_from(list(PRESETS))


@st.composite
def leaves(draw, dtypes):
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(dtypes))
    size = int(np.prod(shape))
    eighths = draw(st.lists(st.integers(-16, 16), min_size=size, max_size=size))
    values = np.reshape(np.array(eighths), shape)
    return jnp.asarray(values if dtype == "int32" else values / 8, dtype)


def trees(*dtypes):
    """Nested dicts, tuples and lists with at least one number to perturb."""
    first = st.builds(
        lambda x: jnp.asarray([x, 1.0, -x], dtypes[0]), st.floats(-2, 2, width=16)
    )
    others = st.recursive(
        st.one_of(st.none(), leaves(dtypes)),
        lambda inside: st.one_of(
            st.dictionaries(st.sampled_from("abc"), inside, max_size=2),
            st.tuples(inside, inside),
            st.lists(inside, max_size=2),
        ),
        max_leaves=3,
    )
    return st.fixed_dictionaries({"first": first, "others": others})


any_trees = trees(*FLOATS, "int32")
float32_trees = trees("float32")


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def value_fn(params, scale=1.0, tilt=0.0):
    """scale · Σ (x − 1/2)² + tilt · Σ x over all floating-point leaves."""
    xs = [x.astype(jnp.float32) for x in jax.tree.leaves(params) if is_float(x)]
    return sum(scale * jnp.sum((x - 0.5) ** 2) + tilt * jnp.sum(x) for x in xs)


@functools.cache
def estimated(name, **options):
    """One compiled function for all examples that agree on the estimator."""
    estimator = PRESETS[name](**{"num_directions": 3, "smoothing": 0.125} | options)
    return jax.jit(radazo.value_and_grad(value_fn, estimator))


arguments = st.fixed_dictionaries(
    {
        "num_directions": st.sampled_from([1, 3]),
        "smoothing": st.sampled_from([0.125, 0.5]),
        "difference": st.sampled_from([radazo.forward, radazo.central]),
        "chunk_size": st.sampled_from([1, 2, 5]),
    }
)


def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_near(first, second, tolerance):
    def near(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(near, first, second)


@properties
@given(any_trees, names, arguments, seeds)
def test_a_gradient_has_structure_shapes_and_types_of_the_parameters(
    params, name, options, seed
):
    _, gradient = estimated(name, **options)(seed, params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert described(gradient) == described(params)


@properties
@given(any_trees, names, arguments, seeds)
def test_a_gradient_is_finite(params, name, options, seed):
    _, gradient = estimated(name, **options)(seed, params)
    leaves = jax.tree.leaves(gradient)
    assert all(np.all(np.isfinite(np.asarray(x, np.float64))) for x in leaves)


@properties
@given(any_trees, names, seeds)
def test_leaves_that_are_no_floats_get_a_gradient_of_zero(params, name, seed):
    _, gradient = estimated(name)(seed, params)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient) if not is_float(x))


@properties
@given(any_trees, names, seeds, st.booleans())
def test_leaves_outside_of_the_mask_get_a_gradient_of_zero(
    params, name, seed, callable_
):
    mask = {"first": True, "others": False}
    given_mask = (lambda params: mask) if callable_ else mask
    estimator = PRESETS[name](num_directions=3, mask=given_mask)
    estimate = jax.jit(radazo.value_and_grad(value_fn, estimator))
    _, gradient = estimate(seed, params)
    assert np.any(gradient["first"])
    assert not any(np.any(x) for x in jax.tree.leaves(gradient["others"]))


@properties
@given(any_trees, names, seeds)
def test_the_value_of_a_forward_difference_is_that_of_the_parameters(
    params, name, seed
):
    value, _ = estimated(name)(seed, params)
    np.testing.assert_allclose(value, value_fn(params), rtol=1e-5)


@properties
@given(float32_trees, names, seeds, st.integers(-8, 8))
def test_the_estimate_of_a_function_times_a_power_of_two_is_that_multiple_exactly(
    params, name, seed, exponent
):
    scale = 2.0**exponent
    _, one = estimated(name)(seed, params, scale=1.0)
    _, many = estimated(name)(seed, params, scale=scale)
    assert_equal(many, jax.tree.map(lambda g: scale * g, one))


@properties
@given(float32_trees, names, seeds)
def test_the_estimate_of_a_sum_is_the_sum_of_the_estimates(params, name, seed):
    estimate = estimated(name)
    _, squares = estimate(seed, params, scale=1.0, tilt=0.0)
    _, plane = estimate(seed, params, scale=0.0, tilt=3.0)
    _, both = estimate(seed, params, scale=1.0, tilt=3.0)
    assert_near(both, jax.tree.map(jnp.add, squares, plane), 1e-2)


@pytest.mark.gate
@costly
@given(float32_trees, names, seeds, st.sampled_from([2, 3, 5]))
def test_the_chunk_size_changes_no_more_than_rounding(params, name, seed, chunk_size):
    _, one_by_one = estimated(name)(seed, params)
    _, chunked = estimated(name, chunk_size=chunk_size)(seed, params)
    assert_near(chunked, one_by_one, 1e-3)


@pytest.mark.gate
@costly
@given(any_trees, names, seeds)
def test_an_estimator_made_again_gives_the_same_estimate(params, name, seed):
    estimator = PRESETS[name](num_directions=3, smoothing=0.125)
    again = jax.jit(radazo.value_and_grad(value_fn, estimator))
    assert_equal(again(seed, params), estimated(name)(seed, params))


def directions_of(params, name, seed):
    return radazo.directions.sample_directions(
        seed, params, SAMPLERS[name], num_directions=2
    )


@pytest.mark.gate
@costly
@given(float32_trees, names, seeds)
def test_directions_of_a_tree_are_those_of_its_ravelled_vector(params, name, seed):
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    cut = [x.reshape(2, -1) for x in jax.tree.leaves(directions_of(params, name, seed))]
    assert_equal(
        np.concatenate(cut, axis=1), np.asarray(directions_of(flat, name, seed))
    )


@pytest.mark.gate
@properties
@given(float32_trees, names, seeds)
def test_leaves_that_are_not_perturbed_change_no_direction_of_the_others(
    params, name, seed
):
    more = [jnp.arange(3), params, None, jnp.zeros((0,)), jnp.array(True)]
    among_others = directions_of(more, name, seed)[1]
    assert_equal(among_others, directions_of(params, name, seed))


@costly
@given(any_trees, names, arguments, seeds)
def test_an_estimate_takes_the_function_values_that_it_promises(
    params, name, options, seed
):
    estimator = PRESETS[name](**options)
    calls = []

    def counted(params):
        value = value_fn(params)
        jax.debug.callback(lambda _: calls.append(1), value)  # One call a value.
        return value

    estimate = jax.jit(
        lambda params: radazo.estimate(
            estimator, seed, counted, params, estimator.init(params)
        )
    )
    info = estimate(params)[3]
    jax.effects_barrier()
    k = options["num_directions"]
    assert len(calls) == info.num_values
    assert info.num_values == (
        k + 1 if options["difference"] is radazo.forward else 2 * k
    )


@pytest.mark.parametrize("name", ["sphere", "gaussian", "rademacher", "coordinate"])
def test_parameters_without_an_element_get_a_gradient_without_an_element(name):
    params = {"a": jnp.zeros((0, 2), jnp.bfloat16)}
    value_and_grad = radazo.value_and_grad(lambda p: 3.0, PRESETS[name]())
    value, gradient = jax.jit(value_and_grad)(0, params)
    assert value == 3
    assert described(gradient) == described(params)
