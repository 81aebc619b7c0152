"""Rounding by chance: exact where it can be, right in the mean, of any type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radazo.random import round_stochastically

KEY = jnp.array([3, 5], jnp.uint32)
NARROW = [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_of_the_narrow_type_stays(dtype):
    """All 65,536 of them, but for those that XLA's CPU backend flushes to 0."""
    patterns = jnp.arange(1 << 16, dtype=jnp.uint32).astype(jnp.uint16)
    numbers = jax.lax.bitcast_convert_type(patterns, dtype)
    wide = numbers.astype(jnp.float32)
    found = jax.jit(lambda x: round_stochastically(KEY, x, dtype))(wide)
    normal = ~(jnp.abs(wide) < float(jnp.finfo(dtype).tiny))
    kept = np.asarray(found.astype(jnp.float32))[normal]
    np.testing.assert_array_equal(kept, np.asarray(wide)[normal])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("number", [1.001, -3.14159, 1e-3])
def test_the_mean_is_the_number_and_only_its_neighbours_occur(dtype, number):
    x = jnp.full(40_000, number, jnp.float32)
    found = np.asarray(jax.jit(lambda x: round_stochastically(KEY, x, dtype))(x), float)
    neighbours = np.unique(found)
    assert len(neighbours) == 2
    assert neighbours[0] < float(x[0]) < neighbours[1]
    error = np.std(found) / np.sqrt(found.size)
    assert abs(np.mean(found) - float(x[0])) < 4 * error


def test_an_offset_is_a_place_in_one_row_of_chances():
    x = jnp.linspace(0.1, 1.0, 100)
    whole = round_stochastically(KEY, x, jnp.bfloat16)
    part = round_stochastically(KEY, x[40:], jnp.bfloat16, 40)
    np.testing.assert_array_equal(part, whole[40:])


def test_float64_is_taken_in_float32(x64):
    x = jnp.linspace(0.1, 1.0, 100, dtype=jnp.float64)
    found = round_stochastically(KEY, x, jnp.bfloat16)
    expected = round_stochastically(KEY, x.astype(jnp.float32), jnp.bfloat16)
    np.testing.assert_array_equal(found, expected)


def test_a_wider_type_takes_all_of_it():
    x = jnp.linspace(0.1, 1.0, 10)
    np.testing.assert_array_equal(round_stochastically(KEY, x, jnp.float32), x)
