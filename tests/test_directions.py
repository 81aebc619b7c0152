"""directions: the samplers, their golden values, and one vector over all leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import raises

import radazo
from radazo import random
from radazo.directions import sample_directions

SAMPLERS = {
    "gaussian": radazo.directions.gaussian,
    "sphere": radazo.directions.sphere,
    "rademacher": radazo.directions.rademacher,
    "coordinate": radazo.directions.coordinate,
    "hadamard": radazo.directions.hadamard,
    "orthogonal": radazo.directions.orthogonal,
}
# The chance that a right draw fails is that of five standard errors, two-sided.
FIVE_SIGMA = 2 * scipy.stats.norm.sf(5)
# Where a program is compiled anew, erf⁻¹ may be rounded with other fused operations.
LAST_PLACES = 2


@pytest.fixture(params=SAMPLERS.values(), ids=SAMPLERS.keys())
def sampler(request):
    return request.param


def ravel_rows(directions):
    """(num_directions, d): the leaves of each direction one after the other."""
    leaves = jax.tree.leaves(directions)
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in leaves], axis=1)


# One program for each case: eager, each of the hundred operations is compiled alone.
draw = jax.jit(sample_directions, static_argnames=("sampler", "num_directions"))


def flat(key, dim, sampler, num_directions):
    """(num_directions, dim): the directions of parameters of one leaf."""
    rows = draw(key, jnp.zeros(dim), sampler, num_directions=num_directions)
    return np.asarray(rows)


@functools.cache
def many(sampler, dim, num, seed=0):
    """(num, dim) independent directions: the last of two of each of `num` keys."""

    def last(key):
        return sample_directions(key, jnp.zeros(dim), sampler, num_directions=2)[1]

    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(jax.jit(jax.vmap(last))(keys), np.float64)


def assert_close(ours, theirs, num_summed=1):
    """Equal to the last places, of the largest element, of a sum of `num_summed`."""
    tolerance = (LAST_PLACES + num_summed) * np.finfo(theirs.dtype).eps
    scale = np.max(np.abs(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


GOLDEN = {
    "gaussian": [
        [0.07592554, -0.48634264, 1.2903206, 0.5196119, 0.30040437],
        [0.60576403, 0.7990441, -0.908927, -0.63525754, -1.2226585],
    ],
    "sphere": [
        [0.05042176, -0.32297766, 0.8568953, 0.34507158, 0.199497],
        [0.31365204, 0.41372842, -0.47062352, -0.32892317, -0.6330672],
    ],
    "rademacher": [[-1, 1, 1, 1, 1], [-1, 1, -1, -1, -1]],
    "hadamard": np.array([[-1, -1, -1, 1, 1], [-1, 1, -1, -1, -1]]) / np.sqrt(5),
    "coordinate": [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]],
    "orthogonal": [
        [0.05042183, -0.32297766, 0.8568954, 0.3450716, 0.19949701],
        [0.54249126, 0.25887364, 0.27951276, -0.1022736, -0.74168766],
    ],
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_directions_are_frozen_in_version_1_of_the_key_contract(name):
    assert radazo.random.KEY_CONTRACT_VERSION == 1
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 1))}
    drawn = draw(42, params, SAMPLERS[name], num_directions=2)
    expected = np.array(GOLDEN[name], np.float32)
    if name in ("rademacher", "coordinate"):
        np.testing.assert_array_equal(ravel_rows(drawn), expected)
    else:
        assert_close(ravel_rows(drawn), expected, num_summed=5)


def test_gaussian_direction_k_is_the_normal_of_the_folded_key():
    rows = flat(3, 50, radazo.directions.gaussian, 4)
    for k, row in enumerate(rows):
        key = jax.random.fold_in(jax.random.key(3), k)
        expected = np.asarray(jax.random.normal(key, (50,)))
        np.testing.assert_array_max_ulp(row, expected, maxulp=LAST_PLACES)


def test_a_sphere_direction_is_the_gaussian_direction_over_its_norm():
    rows = flat(3, 50, radazo.directions.gaussian, 4).astype(np.float64)
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert_close(
        flat(3, 50, radazo.directions.sphere, 4), expected.astype(np.float32), 50
    )


def test_a_rademacher_direction_is_the_packed_bits_of_the_folded_key():
    rows = flat(3, 50, radazo.directions.rademacher, 4)
    for k, row in enumerate(rows):
        key = jax.random.fold_in(jax.random.key(3), k)
        words = np.asarray(jax.random.bits(key, (2,)))
        bit = np.unpackbits(words.astype(">u4").view(np.uint8))[:50]
        np.testing.assert_array_equal(row, np.where(bit == 1, -1.0, 1.0))


def test_a_coordinate_direction_is_one_at_the_index_of_the_folded_key():
    rows = flat(3, 50, radazo.directions.coordinate, 4)
    for k, row in enumerate(rows):
        key = jax.random.key_data(jax.random.fold_in(jax.random.key(3), k))
        expected = np.eye(50)[int(random.index_below(key, 50))]
        np.testing.assert_array_equal(row, expected)


def test_orthogonal_directions_are_the_gaussian_ones_made_orthonormal_in_turn():
    rows = flat(3, 50, radazo.directions.gaussian, 4).astype(np.float64)
    basis = np.zeros((0, 50))
    for row in rows:  # Gram and Schmidt: nothing of a backend's choice of signs.
        rest = row - basis.T @ (basis @ row)
        basis = np.vstack([basis, rest / np.linalg.norm(rest)])
    assert_close(
        flat(3, 50, radazo.directions.orthogonal, 4), basis.astype(np.float32), 4 * 50
    )


@pytest.mark.parametrize("num_directions", [1, 3, 20])
def test_orthogonal_directions_are_orthonormal(num_directions):
    rows = flat(0, 20, radazo.directions.orthogonal, num_directions).astype(np.float64)
    tolerance = 20 * num_directions * np.finfo(np.float32).eps
    gram = rows @ rows.T
    np.testing.assert_allclose(gram, np.eye(num_directions), atol=tolerance)


def test_more_orthogonal_directions_than_dimensions_are_refused():
    with raises(ValueError, "num_directions", "at most", "3", "4"):
        flat(0, 3, radazo.directions.orthogonal, 4)


@pytest.mark.parametrize("name", ["gaussian", "sphere", "rademacher", "coordinate"])
def test_a_direction_does_not_depend_on_how_many_are_drawn_beside_it(name):
    few = flat(1, 40, SAMPLERS[name], 3)
    more = flat(1, 40, SAMPLERS[name], 8)
    assert_close(few, more[:3], num_summed=40)


def test_the_same_key_gives_the_same_directions(sampler):
    np.testing.assert_array_equal(
        flat(1, 40, sampler, 3), flat(jax.random.key(1), 40, sampler, 3)
    )


def test_another_key_gives_other_directions(sampler):
    assert np.any(flat(1, 40, sampler, 3) != flat(2, 40, sampler, 3))


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize(
    "params",
    [
        {"a": jnp.zeros((3, 4)), "b": jnp.zeros(()), "c": jnp.zeros(7)},
        [jnp.zeros(1), jnp.zeros(1), jnp.zeros(2), jnp.zeros(16)],
        (jnp.zeros((2, 0, 3)), None, jnp.zeros((2, 2, 5)), {"empty": ()}),
    ],
    ids=["dict", "list", "nested"],
)
def test_a_direction_is_the_same_vector_whatever_it_is_cut_into(sampler, params):
    cut = draw(6, params, sampler, num_directions=2)
    assert_close(ravel_rows(cut), flat(6, 20, sampler, 2), num_summed=20)
    assert jax.tree.structure(cut) == jax.tree.structure(params)


@pytest.mark.parametrize("name", ["sphere", "hadamard", "coordinate", "orthogonal"])
def test_a_unit_direction_has_one_norm_over_all_leaves(name):
    params = {"a": jnp.zeros((30, 10)), "b": jnp.zeros(()), "c": jnp.zeros(700)}
    rows = draw(0, params, SAMPLERS[name], num_directions=3)
    norms = np.linalg.norm(ravel_rows(rows).astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1001 * np.finfo(np.float32).eps)


def test_no_number_of_a_direction_is_drawn_twice():
    params = [jnp.zeros((100, 10)), jnp.zeros(1000), jnp.zeros((10, 100))]
    with jax.enable_x64(True):
        params = [x.astype(jnp.float64) for x in params]
        rows = draw(0, params, radazo.directions.gaussian, num_directions=3)
        numbers = ravel_rows(rows).ravel()
    # Two of 9000 draws of 52 bits are equal by chance once in 10⁸ keys.
    assert len(np.unique(numbers)) == 9000


@pytest.mark.parametrize("name", ["gaussian", "rademacher"])
def test_leaves_of_one_shape_do_not_share_noise(name):
    size = 10_000
    params = {"a": jnp.zeros(size), "b": jnp.zeros(size), "c": jnp.zeros(size)}
    u = draw(0, params, SAMPLERS[name], num_directions=2)
    rows = [np.asarray(u[leaf][k], np.float64) for leaf in "abc" for k in (0, 1)]
    standard_error = 1 / np.sqrt(size)  # Of the mean of products of variance 1.
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert abs(np.mean(row * other)) < 5 * standard_error


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_a_low_precision_leaf_gets_the_float32_draw_rounded(sampler, dtype):
    params = {"a": jnp.zeros(8), "b": jnp.zeros((3, 4), dtype)}
    drawn = draw(0, params, sampler, num_directions=2)
    wide = flat(0, 20, sampler, 2)
    assert drawn["b"].dtype == dtype
    np.testing.assert_array_equal(
        drawn["b"], jnp.asarray(wide[:, 8:].reshape(2, 3, 4)).astype(dtype)
    )


@pytest.mark.usefixtures("x64")
def test_a_direction_is_drawn_in_float64_if_a_perturbed_leaf_is():
    params = {"a": jnp.zeros(8, jnp.float32), "b": jnp.zeros(12, jnp.float64)}
    drawn = draw(0, params, radazo.directions.gaussian, num_directions=1)
    key = jax.random.fold_in(jax.random.key(0), 0)
    wide = jax.random.normal(key, (20,), jnp.float64)
    assert drawn["a"].dtype == jnp.float32
    np.testing.assert_allclose(drawn["b"][0], wide[8:], rtol=4 * np.finfo(float).eps)
    np.testing.assert_array_equal(drawn["a"][0], wide[:8].astype(jnp.float32))


def test_what_is_not_perturbed_has_zeros_for_directions():
    params = {"i": jnp.arange(3), "x": jnp.zeros(5), "y": jnp.zeros(2)}
    mask = {"i": True, "x": True, "y": False}
    drawn = sample_directions(
        0, params, radazo.directions.gaussian, num_directions=2, mask=mask
    )
    np.testing.assert_array_equal(drawn["i"], np.zeros((2, 3), np.int32))
    np.testing.assert_array_equal(drawn["y"], np.zeros((2, 2), np.float32))
    assert_close(np.asarray(drawn["x"]), flat(0, 5, radazo.directions.gaussian, 2))


@pytest.mark.fast_cases(1)
def test_directions_are_the_same_under_jit_and_vmap(sampler):
    def rows(key):
        return sample_directions(key, jnp.zeros(33), sampler, num_directions=4)

    keys = jax.random.split(jax.random.key(0), 3)
    eager = np.stack([rows(key) for key in keys])
    assert_close(np.stack([jax.jit(rows)(key) for key in keys]), eager, 33)
    assert_close(np.asarray(jax.jit(jax.vmap(rows))(keys)), eager, 33)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"coordinate"}))
def test_directions_have_mean_zero(name, seed):
    rows = many(SAMPLERS[name], 5, 20_000, seed)
    standard_error = np.std(rows, axis=0) / np.sqrt(len(rows))
    assert np.all(np.abs(np.mean(rows, axis=0)) < 5 * standard_error)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mean_outer_product_is_the_identity_over_the_factor(sampler, seed):
    rows = many(sampler, 5, 20_000, seed)
    products = rows[:, :, None] * rows[:, None, :]
    expected = np.eye(5) / sampler.factor(5)
    standard_error = np.std(products, axis=0) / np.sqrt(len(rows))
    error = np.abs(np.mean(products, axis=0) - expected)
    # The squares of signs and of unit vectors do not vary: only rounding is left.
    assert np.all(error <= 5 * standard_error + 5 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gaussian_directions_are_standard_normal(seed):
    rows = flat(seed, 20_000, radazo.directions.gaussian, 2)
    assert scipy.stats.kstest(rows.ravel(), "norm").pvalue > FIVE_SIGMA


@pytest.mark.parametrize("name", ["sphere", "orthogonal"])
def test_squares_of_a_unit_direction_have_a_beta_distribution(name):
    d = 5
    squares = many(SAMPLERS[name], d, 20_000) ** 2
    distribution = scipy.stats.beta(0.5, (d - 1) / 2)
    for i in range(d):
        assert scipy.stats.kstest(squares[:, i], distribution.cdf).pvalue > FIVE_SIGMA


def test_coordinates_are_chosen_uniformly():
    num, d = 20_000, 7
    counts = np.sum(many(radazo.directions.coordinate, d, num), axis=0)
    standard_error = np.sqrt(num * (1 / d) * (1 - 1 / d))
    assert np.max(np.abs(counts - num / d)) < 5 * standard_error


@pytest.mark.parametrize("num_directions", [0, -1])
def test_no_directions_are_refused(num_directions):
    with raises(ValueError, "num_directions", "at least 1", str(num_directions)):
        flat(0, 3, radazo.directions.sphere, num_directions)


def test_what_is_no_distribution_is_refused():
    with raises(TypeError, "sample_directions", "sampler", "sphere"):
        sample_directions(0, jnp.zeros(3), "sphere", num_directions=1)
