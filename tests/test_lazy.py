"""A function walked with noise where it is used has the value of a perturbed copy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from radazo import flat, random
from radazo.evaluate import lazy

pytestmark = pytest.mark.usefixtures("of_users")

KEY = jnp.array([7, 11], jnp.uint32)
DISTANCE = 0.1
TOKENS = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])


def make_params(dtype=jnp.float32):
    def array(i, *shape):
        key = jax.random.fold_in(jax.random.key(0), i)
        return (jax.random.normal(key, shape) / 4).astype(dtype)

    return {
        "bias": array(0, 8),
        "embed": array(1, 12, 8),
        "layers": {"gain": array(2, 3, 8), "weight": array(3, 3, 8, 8)},
        "steps": jnp.array([1, 2]),
        "table": (array(4, 8, 12), 0.5),
    }


def noise_of(draw, at, record=None):
    return lazy.Noise(
        lambda offset, size: DISTANCE * draw(KEY, size, jnp.float32, offset),
        lambda indices: DISTANCE * at(KEY, indices, jnp.float32),
        (lambda leaf, size: None) if record is None else record,
    )


GAUSSIAN = functools.partial(noise_of, random.normal, random.normal_at)
SIGNS = functools.partial(noise_of, random.signs, random.signs_at)


def streamed(value_fn, params, make_noise=GAUSSIAN, mask=None):
    """The value, and by leaf the most elements that were perturbed at once."""
    at_once = {}

    def note(leaf, size):
        at_once[leaf] = max(size, at_once.get(leaf, 0))

    layout = flat.layout("test", params, mask)
    value = jax.jit(
        lambda params: lazy.evaluate(value_fn, params, layout, make_noise(note))
    )(params)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
    return value, {paths[leaf]: size for leaf, size in at_once.items()}


def copied(value_fn, params, draw=random.normal, mask=None):
    layout = flat.layout("test", params, mask)

    def value(params):
        direction = draw(KEY, layout.dim, jnp.float32)
        distance = jnp.float32(DISTANCE)
        return value_fn(flat.perturb(layout, params, direction, distance, KEY[0]))

    return jax.jit(value)(params)


def layer(h, p):
    return jnp.tanh(h @ p["weight"]) * p["gain"]


def scanned(params):
    h = params["embed"][TOKENS] + params["bias"]
    h, _ = lax.scan(lambda h, p: (layer(h, p), None), h, params["layers"])
    return jnp.sum(h @ params["embed"].T)


def reversed_and_collected(params):
    def turn(h, p):
        return layer(h, p), jnp.sum(h)

    h, sums = lax.scan(
        jax.checkpoint(turn), params["bias"], params["layers"], reverse=True, unroll=2
    )
    return jnp.sum(h) + jnp.sum(sums)


def indexed_in_a_loop(params):
    def turn(i, h):
        return layer(h, jax.tree.map(lambda x: x[i], params["layers"]))

    return jnp.sum(lax.fori_loop(0, 3, turn, params["bias"]))


def indexed_outside_of_loops(params):
    h = params["bias"]
    for i in (2, 0, -1):
        gain, weight = jax.tree.leaves(params["layers"])
        h = layer(h, {"gain": gain[i], "weight": weight[i]})
    return jnp.sum(h) + jnp.sum(params["embed"][2:5]) + jnp.sum(params["embed"][:, 1])


def needed_in_every_turn(params):
    def turn(h, p):
        return jnp.tanh(h @ p["weight"] + params["bias"]), None

    return jnp.sum(lax.scan(turn, params["bias"], params["layers"])[0])


def a_while_loop(params):
    def turn(carry):
        i, h = carry
        return i + 1, layer(h, jax.tree.map(lambda x: x[i], params["layers"]))

    return jnp.sum(
        lax.while_loop(lambda carry: carry[0] < 3, turn, (0, params["bias"]))[1]
    )


def a_loop_in_a_loop(params):
    def outer(h, p):
        weight, gain = p

        def inner(h, row):
            return h + jnp.tanh(row) * gain, None

        return lax.scan(inner, h, weight)[0], None

    stack = params["layers"]["weight"], params["layers"]["gain"]
    return jnp.sum(lax.scan(outer, params["bias"], stack)[0])


def under_a_condition(params):
    def looked_up(params):
        return jnp.sum(params["embed"][TOKENS])

    chosen = jnp.sum(params["bias"]) > -100
    return lax.cond(chosen, looked_up, lambda p: jnp.sum(p["table"][0]), params)


def in_bfloat16(params):
    params = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), params)
    h = params["embed"][TOKENS].astype(jnp.float32)

    def turn(h, p):
        return jnp.tanh(h @ p["weight"].astype(jnp.float32)), None

    h, _ = lax.scan(turn, h, params["layers"])
    return jnp.sum(h @ params["table"][0].astype(jnp.float32))


def products_of_all_kinds(params):
    table, weight = params["table"][0], params["layers"]["weight"]
    h = params["embed"][TOKENS]
    return (
        jnp.sum(jnp.tanh(h @ table))
        + jnp.sum(jnp.tanh(params["embed"] @ table))
        + jnp.sum(jnp.tanh(jnp.einsum("vh,bth->vbt", params["embed"], h)))
        + jnp.sum(jnp.tanh(jnp.einsum("bth,lhk->btlk", h, weight)))
        + jnp.sum(jnp.tanh(jnp.einsum("lhk,lh->lk", weight, params["layers"]["gain"])))
        + jnp.sum(jnp.tanh(jnp.einsum("btk,lhk->lbth", h, weight)))
    )


def turned_and_reshaped(params):
    weight = params["layers"]["weight"]
    rows = weight.reshape(24, 8)[TOKENS]
    _, sums = lax.scan(
        lambda total, w: (total, jnp.sum(jnp.sin(w) @ params["bias"])),
        0.0,
        weight.transpose(0, 2, 1),
    )
    _, more = lax.scan(
        lambda total, w: (total, jnp.sum(jnp.cos(w))), 0.0, weight.transpose(1, 2, 0)
    )
    picked = params["embed"].T[TOKENS]
    return jnp.sum(rows**2) + jnp.sum(sums) + jnp.sum(more) + jnp.sum(picked**2)


def mapped(params):
    def one(token):
        return jnp.sum(jax.nn.relu(params["embed"][token] @ params["table"][0]))

    return jnp.sum(jax.vmap(jax.vmap(one))(TOKENS))


def out_of_bounds(params):
    far = jnp.array([-1, 3, 40])
    filled = params["embed"].at[far].get(mode="fill", fill_value=2.0)
    clipped = params["embed"].at[far].get(mode="clip")
    sliced = lax.dynamic_slice(params["embed"], (11, 0), (3, 8))
    corner = lax.dynamic_slice(params["embed"], (2, 1), (3, 4))
    return sum(jnp.sum(x * x) for x in (filled, clipped, sliced, corner))


def in_microbatches(params):
    """A loop over layers within one over rows, and a jit between them."""

    @jax.jit
    def of_row(tokens):
        h = params["embed"][tokens]
        h, _ = lax.scan(lambda h, p: (layer(h, p), None), h, params["layers"])
        return jnp.sum(h)

    return jnp.sum(lax.map(of_row, TOKENS))


def with_a_derivative(params):
    """The scans that JAX makes of one that is differentiated and mapped."""

    def of_row(start):
        return jnp.sum(lax.scan(lambda h, p: (layer(h, p), h), start, stack)[1] ** 2)

    stack = params["layers"]
    return jnp.sum(jax.vmap(jax.grad(of_row))(params["embed"]))


def straight_through(params):
    """Of a leaf that a rule of differentiation of its own is applied to."""

    @jax.custom_jvp
    def rounded(x):
        return jnp.round(40 * x) / 40

    rounded.defjvp(lambda primals, tangents: (rounded(*primals), *tangents))
    return jnp.sum(rounded(params["bias"]) ** 2)


def of_nothing(params):
    return jnp.float32(params["table"][1]) + jnp.sum(params["steps"])


FUNCTIONS = [
    scanned,
    reversed_and_collected,
    indexed_in_a_loop,
    indexed_outside_of_loops,
    needed_in_every_turn,
    a_while_loop,
    a_loop_in_a_loop,
    under_a_condition,
    in_bfloat16,
    products_of_all_kinds,
    turned_and_reshaped,
    mapped,
    out_of_bounds,
    in_microbatches,
    with_a_derivative,
    straight_through,
    of_nothing,
]
each_function = pytest.mark.parametrize("value_fn", FUNCTIONS)


def test_the_sizes_of_a_scan_are_read_in_all_versions_of_jax():
    """One constant, two carried values, three that are stacked; then derivatives."""

    def function(start, stack):
        def turn(carry, inputs):
            (i, h), (a, b, c) = carry, inputs
            return (i + 1, h * start + a), (b, jnp.sin(h) * c)

        return lax.scan(turn, (0, start), (stack, 2 * stack, 3 * stack))

    def sizes(function, *args):
        (params,) = [
            eqn.params
            for eqn in jax.make_jaxpr(function)(*args).eqns
            if eqn.primitive.name == "scan"
        ]
        return lazy._scan_sizes(params)

    args = jnp.ones(2), jnp.ones((4, 2))
    assert sizes(function, *args) == (1, 2)
    assert sizes(jax.vmap(function), jnp.ones((3, 2)), jnp.ones((3, 4, 2))) == (1, 2)
    # The derivatives of the constant and of what is carried, but for the integer.
    assert sizes(lambda *args: jax.jvp(function, args, args), *args) == (2, 3)


@pytest.mark.fast_cases(2)
@each_function
def test_the_value_is_that_of_a_perturbed_copy(value_fn):
    params = make_params()
    found, _ = streamed(value_fn, params)
    np.testing.assert_allclose(found, copied(value_fn, params), rtol=2e-6)
    if value_fn is not of_nothing:
        assert abs(found - value_fn(params)) > 1e-3


@pytest.mark.fast_cases(4)
@each_function
def test_blocks_of_a_product_change_no_value(value_fn, monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 20)  # 12 rows of 8 in blocks of two.
    params = make_params()
    found, _ = streamed(value_fn, params)
    np.testing.assert_allclose(found, copied(value_fn, params), rtol=2e-6)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("value_fn", [scanned, indexed_in_a_loop, out_of_bounds])
def test_signs_are_read_from_the_middle_of_a_word(value_fn):
    params = make_params()
    found, _ = streamed(value_fn, params, SIGNS)
    expected = copied(value_fn, params, random.signs)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_are_perturbed_in_float32_and_rounded_once(dtype):
    params = make_params(dtype)
    found, _ = streamed(lambda p: scanned(p).astype(jnp.float32), params)
    expected = copied(lambda p: scanned(p).astype(jnp.float32), params)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_what_is_masked_is_not_moved():
    params, mask = (
        make_params(),
        {
            "bias": False,
            "embed": True,
            "layers": {"gain": True, "weight": False},
            "steps": False,
            "table": False,
        },
    )
    found, at_once = streamed(scanned, params, mask=mask)
    np.testing.assert_allclose(found, copied(scanned, params, mask=mask), rtol=2e-6)
    assert {*at_once} == {"['embed']", "['layers']['gain']"}


def test_no_more_of_a_leaf_is_perturbed_than_is_used(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 32)
    params = make_params()

    def at_once(value_fn):
        return streamed(value_fn, params)[1]

    weight, gain = "['layers']['weight']", "['layers']['gain']"
    of_a_layer = {weight: 64, gain: 8, "['bias']": 8}
    assert at_once(scanned) == of_a_layer | {"['embed']": 64}  # Of 8 tokens; 96 in all.
    assert at_once(reversed_and_collected) == of_a_layer
    assert at_once(indexed_in_a_loop) == of_a_layer
    assert at_once(indexed_outside_of_loops) == of_a_layer | {"['embed']": 96}
    assert at_once(a_loop_in_a_loop) == {weight: 8, gain: 8, "['bias']": 8}
    assert at_once(in_microbatches) == {weight: 64, gain: 8, "['embed']": 32}
    assert at_once(under_a_condition)["['embed']"] == 64
    assert at_once(a_while_loop)[weight] == 3 * 64  # A fallback.


def test_the_tied_head_is_perturbed_in_blocks(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 40)
    params = make_params()
    h = jnp.ones((2, 8))
    value, at_once = streamed(lambda p: jnp.sum(jnp.tanh(h @ p["embed"].T)), params)
    assert at_once == {"['embed']": 40}
    expected = copied(lambda p: jnp.sum(jnp.tanh(h @ p["embed"].T)), params)
    np.testing.assert_allclose(value, expected, rtol=2e-6)


def test_several_values_and_their_structure_come_back():
    params = make_params()

    def value_fn(params):
        return {"a": params["bias"], "b": (params["steps"], jnp.sum(params["embed"]))}

    found, _ = streamed(value_fn, params)
    expected = copied(value_fn, params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-6), found, expected
    )


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("value_fn", [scanned, straight_through])
def test_a_derivative_along_the_noise_goes_through(value_fn):
    params = make_params()
    layout = flat.layout("test", params)

    def along(distance):
        noise = lazy.Noise(
            lambda offset, size: (
                distance * random.normal(KEY, size, jnp.float32, offset)
            ),
            lambda indices: distance * random.normal_at(KEY, indices, jnp.float32),
        )
        return lazy.evaluate(value_fn, params, layout, noise)

    def copied_along(distance):
        direction = random.normal(KEY, layout.dim, jnp.float32)
        moved = flat.perturb(layout, params, direction, distance, KEY[0])
        return value_fn(moved)

    zero, one = jnp.float32(0), jnp.float32(1)
    found = jax.jit(lambda: jax.jvp(along, (zero,), (one,)))()
    expected = jax.jit(lambda: jax.jvp(copied_along, (zero,), (one,)))()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[1] != 0
