"""Models beyond 2³² parameters: elements are drawn from offsets of two words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import radazo
from radazo import core, flat, random
from radazo.evaluate import lazy, perturbed
from radazo.optimizers.in_place import _init, _move, _Rule, _WeightedSum

KEY = jnp.array([7, 11, 13], jnp.uint32)  # The third word is a row, for `hadamard`.
WORD = 2**32
BOUNDARY = WORD - 100  # Parts that begin here end beyond 2³².
HADAMARD = radazo.directions.hadamard
SAMPLERS = [radazo.directions.gaussian, radazo.directions.rademacher, HADAMARD]


def number(offset):
    if isinstance(offset, random.Offset):
        return (int(offset.hi) << 32) + int(offset.lo)
    return int(offset)


def two_words(offset):
    return random.Offset(jnp.uint32(offset // WORD), jnp.uint32(offset % WORD))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**37),
    st.integers(0, WORD - 1),
    st.integers(1, 2**35),
    st.booleans(),
)
def test_offsets_are_added_as_integers(offset, index, unit, known):
    found = random.advance(
        offset if known else two_words(offset), jnp.uint32(index), unit, 2**62
    )
    assert number(found) == (offset + index * unit) % 2**64
    assert random.advance(offset, index, unit, 2**62) == offset + index * unit


def test_offsets_below_one_word_stay_in_one():
    found = random.advance(1000, jnp.uint32(7), 3, 500)
    assert found.dtype == jnp.uint32
    assert int(found) == 1021
    assert int(random.advance(found, jnp.uint32(2), 10, 100)) == 1041
    assert isinstance(random.advance(BOUNDARY, jnp.uint32(0), 3, 500), random.Offset)


@pytest.mark.parametrize("draw", [random.normal, random.signs, HADAMARD.part])
@pytest.mark.parametrize("offset", [0, 5, BOUNDARY, WORD - 1, WORD + 77, 2**36 + 3])
def test_elements_from_two_words_are_those_from_the_integer(draw, offset):
    expected = draw(KEY, 300, jnp.float32, offset)
    found = jax.jit(lambda offset: draw(KEY, 300, jnp.float32, offset))
    np.testing.assert_allclose(found(two_words(offset)), expected, rtol=1e-6)
    if offset < BOUNDARY:
        np.testing.assert_allclose(found(jnp.uint32(offset)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("at", "draw"),
    [
        (random.normal_at, random.normal),
        (random.signs_at, random.signs),
        (HADAMARD.at, HADAMARD.part),
    ],
)
def test_elements_at_indices_of_two_words_are_those_of_the_row(at, draw):
    lo = (jnp.arange(300, dtype=jnp.uint32) + jnp.uint32(BOUNDARY)).reshape(3, 100)
    hi = (lo < jnp.uint32(BOUNDARY)).astype(jnp.uint32)
    found = at(KEY, random.Offset(hi, lo), jnp.float32)
    expected = draw(KEY, 300, jnp.float32, BOUNDARY)
    np.testing.assert_array_equal(found, expected.reshape(3, 100))


def pretended(tree):
    """The layout of leaves of which the first is taken for one that fills a word."""
    layout = flat.layout("test", tree)
    return layout._replace(sizes=(BOUNDARY, *layout.sizes[1:]))


def params():
    key = jax.random.key(0)
    return {
        "a": jnp.ones(2),
        "b": jax.random.normal(key, (4, 6, 6)),
        "c": jax.random.normal(key, (50, 6)),
    }


def drawn(sampler, tree, key=KEY):
    """Noise of all leaves but the first, from offsets that are integers."""
    place, noise = BOUNDARY, {"a": jnp.zeros(2)}
    for name in ("b", "c"):
        size = tree[name].size
        part = sampler.part(key, size, jnp.float32, place)
        noise[name] = part.reshape(tree[name].shape)
        place += size
    return noise


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_function_is_walked_across_the_boundary(sampler):
    tokens = jnp.array([[3, 49, 7], [0, 20, 49]])

    def value_fn(p):
        h = p["c"][tokens]
        h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["b"])
        return jnp.sum(h @ p["c"].T)

    tree, layout = params(), pretended(params())
    noise = perturbed.noise_along(sampler, KEY, layout, jnp.float32(0.1))
    found = jax.jit(lambda p: lazy.evaluate(value_fn, p, layout, noise))(tree)
    moved = jax.tree.map(lambda x, u: x + 0.1 * u, tree, drawn(sampler, tree))
    np.testing.assert_allclose(found, value_fn(moved), rtol=1e-5)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_parameters_are_moved_across_the_boundary(sampler):
    tree, layout = params(), pretended(params())
    keys = jnp.stack([KEY, KEY + jnp.uint32(1)])
    gradient = _WeightedSum(sampler, keys, jnp.array([0.5, -2.0]))
    rule = _Rule(optax.sgd(0.1), None)

    def move(p, states):
        step = core.Step(KEY, layout, p, jnp.float32(0.1))
        return _move(rule, gradient, step, states, jnp.bool_(True))

    found, _ = jax.jit(move)(tree, _init(rule, tree, layout))
    first, second = (drawn(sampler, tree, key) for key in keys)
    for name in ("b", "c"):
        g = 0.5 * first[name] - 2.0 * second[name]
        np.testing.assert_allclose(found[name], tree[name] - 0.1 * g, rtol=1e-5)


def test_a_norm_is_taken_over_blocks_beyond_the_boundary():
    """Of a sampler whose blocks are as long as their first offset is beyond 2³²."""

    def part(key, size, dtype, offset):
        hi, _ = random._split_offset(offset)
        return jnp.asarray([hi], dtype)

    scale = lambda drawn, dim: jnp.sqrt(jnp.sum(drawn**2))
    sampler = radazo.directions.sphere._replace(part=part, scale=scale)
    blocks = 2 * WORD // lazy.BLOCK
    layout = flat.Layout((True,), (2 * WORD,), 2 * WORD, jnp.float32)
    expected = np.sqrt(blocks / 2 + 2**2)  # hi is 1 for half of them, 2 for the rest.
    np.testing.assert_allclose(
        perturbed.scale_of(sampler, KEY, layout), expected, rtol=1e-6
    )


def test_what_is_drawn_as_a_whole_has_fewer_than_one_word():
    large = jax.eval_shape(lambda: {"x": jnp.zeros((WORD // 64, 64))})
    optimizer = radazo.zo_sgd(0.1, radazo.gaussian_estimator(), key=0)
    hint = "Freeze some leaves with `mask`, or take `radazo.in_place`."
    with raises(ValueError, "have fewer than 2³² perturbed elements", hint):
        jax.eval_shape(
            lambda p: optimizer.update(
                None, optimizer.init(p), p, value_fn=lambda p: jnp.sum(p["x"])
            ),
            large,
        )


def layers(num):
    """So many of 2³⁰ elements."""
    return jax.eval_shape(lambda: {"x": jnp.zeros((num, 1 << 15, 1 << 15))})


def through_layers(p):
    h = jnp.ones(1 << 15)
    return jnp.sum(lax.scan(lambda h, w: (h @ w, None), h, p["x"])[0])


def step_of(value_fn, large):
    optimizer = radazo.in_place(optax.sgd(0.1), key=0)
    step = lambda p: optimizer.step(value_fn, p, optimizer.init(p))
    return jax.eval_shape(step, large)


@pytest.mark.gate
def test_what_is_drawn_in_parts_may_have_more():
    moved, *_ = step_of(through_layers, layers(5))
    assert moved["x"].shape == (5, 1 << 15, 1 << 15)
    with raises(ValueError, "have fewer than 2³⁷ perturbed elements", "with `mask`."):
        step_of(through_layers, layers(128))
    for value_fn in (
        lambda p: jnp.sum(p["x"]),
        lambda p: jnp.sum(p["x"].at[jnp.array([0, 4])].get()),
    ):
        with raises(ValueError, "fewer than 2³² elements", "by `jax.lax.scan`"):
            step_of(value_fn, layers(5))
    flat = jax.eval_shape(lambda: {"x": jnp.zeros(5 << 30)})
    with raises(ValueError, "fewer than 2³² elements", "layers along its first axis"):
        step_of(lambda p: through_layers({"x": p["x"].reshape(5, 1 << 15, -1)}), flat)
