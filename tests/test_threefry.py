"""threefry: the bits of JAX's generator, element by element, from any offset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import raises
from jax import lax

from radazo import random

SIZES = [1, 2, 33, 1000, 4097]
SEEDS = [0, 2**31 - 1]
FULL = 2**32 - 1
# Random123 (Salmon et al. 2011), kat_vectors, threefry2x32 20: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((FULL, FULL), (FULL, FULL), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
# Four places: XLA may evaluate the polynomial of erf⁻¹ with or without fused
# multiply-adds, depending on what it is compiled with.
LAST_PLACES = 4


def transcribed(key, counter):
    """Threefry-2x32-20 in Python integers, from the paper: (hi, lo) of a counter."""
    ks = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x0, x1 = (counter >> 32) + ks[0] & FULL, (counter & FULL) + ks[1] & FULL
    for i in range(20):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x0 = x0 + x1 & FULL
        x1 = (x1 << r | x1 >> (32 - r)) & FULL ^ x0
        if i % 4 == 3:
            n = (i + 1) // 4
            x0 = x0 + ks[n % 3] & FULL
            x1 = x1 + ks[(n + 1) % 3] + n & FULL
    return x0, x1


def words_of(seed):
    return jax.random.key_data(jax.random.key(seed))


def as_ints(words):
    return tuple(int(word) for word in words)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_answers(counter, key, answer):
    hi, lo = random.threefry(
        jnp.array(key, jnp.uint32), jnp.uint32(counter[0]), jnp.uint32(counter[1])
    )
    assert (int(hi), int(lo)) == answer


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_transcription_gives_the_published_answers(counter, key, answer):
    assert transcribed(key, counter[0] << 32 | counter[1]) == answer


@pytest.mark.parametrize("data", [0, 1, 1000, 2**31, FULL])
def test_fold_in_is_that_of_jax(data):
    ours = random.fold_in(words_of(3), jnp.uint32(data))
    theirs = jax.random.fold_in(jax.random.key(3), jnp.uint32(data))
    np.testing.assert_array_equal(ours, jax.random.key_data(theirs))


def test_fold_in_of_a_python_integer_is_that_of_its_word():
    ours = random.fold_in(words_of(3), 17)
    np.testing.assert_array_equal(ours, random.fold_in(words_of(3), jnp.uint32(17)))


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_bits_are_those_of_jax(seed, size):
    theirs = jax.random.bits(jax.random.key(seed), (size,))
    np.testing.assert_array_equal(random.bits(words_of(seed), size), theirs)


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_float32_normals_are_those_of_jax(seed, size):
    ours = random.normal(words_of(seed), size, jnp.float32)
    theirs = jax.random.normal(jax.random.key(seed), (size,), jnp.float32)
    np.testing.assert_array_max_ulp(
        np.asarray(ours), np.asarray(theirs), maxulp=LAST_PLACES
    )


@pytest.mark.parametrize("size", [1, 33, 4097])
@pytest.mark.usefixtures("x64")
def test_float64_normals_are_those_of_jax(size):
    ours = random.normal(words_of(7), size, jnp.float64)
    theirs = jax.random.normal(jax.random.key(7), (size,), jnp.float64)
    assert ours.dtype == jnp.float64
    np.testing.assert_array_max_ulp(
        np.asarray(ours), np.asarray(theirs), maxulp=LAST_PLACES
    )


@pytest.mark.usefixtures("x64")
def test_float32_normals_are_the_same_where_float64_is_allowed():
    ours = random.normal(words_of(7), 1000, jnp.float32)
    with jax.enable_x64(False):
        theirs = random.normal(words_of(7), 1000, jnp.float32)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("offset", [0, 1, 31, 32, 500, 999])
def test_bits_from_an_offset_are_a_slice(offset):
    whole = random.bits(words_of(1), 1000)
    part = random.bits(words_of(1), 1000 - offset, offset)
    np.testing.assert_array_equal(part, whole[offset:])


def test_bits_from_a_traced_offset_are_a_slice():
    whole = random.bits(words_of(1), 1000)
    part = jax.jit(lambda start: random.bits(words_of(1), 50, start))(jnp.uint32(70))
    np.testing.assert_array_equal(part, whole[70:120])


@pytest.mark.parametrize("offset", [1, 31, 32, 500, 999])
def test_normals_from_an_offset_are_a_slice(offset):
    whole = random.normal(words_of(1), 1000, jnp.float32)
    part = random.normal(words_of(1), 1000 - offset, jnp.float32, offset)
    np.testing.assert_array_max_ulp(
        np.asarray(part), np.asarray(whole)[offset:], maxulp=LAST_PLACES
    )


@pytest.mark.parametrize("offset", [1, 31, 32, 33, 70, 999])
@pytest.mark.parametrize("size", [1, 130])
def test_signs_from_an_offset_are_a_slice(offset, size):
    whole = random.signs(words_of(1), 1200, jnp.float32)
    part = random.signs(words_of(1), size, jnp.float32, offset)
    np.testing.assert_array_equal(part, whole[offset : offset + size])


@pytest.mark.parametrize(
    "offset", [2**32 - 5, 2**32 - 1, 2**32, 2**32 + 3, 5 * 2**32 - 2, 2**63 + 11]
)
def test_bits_beyond_one_word_of_counter_are_those_of_the_transcription(offset):
    key = words_of(7)
    pairs = [transcribed(as_ints(key), offset + i) for i in range(9)]
    bits = jax.jit(lambda key: random.bits(key, 9, offset))(key)
    np.testing.assert_array_equal(bits, [hi ^ lo for hi, lo in pairs])


def test_normals_across_one_word_of_counter_are_those_of_the_transcription():
    key, offset = words_of(7), 2**32 - 5
    pairs = [transcribed(as_ints(key), offset + i) for i in range(9)]
    mantissa = np.array([(hi ^ lo) >> 9 for hi, lo in pairs], np.float32)
    uniform = mantissa * np.float32(2**-23) * 2 + np.nextafter(np.float32(-1), 0)
    expected = np.sqrt(np.float32(2)) * np.asarray(lax.erf_inv(jnp.asarray(uniform)))
    ours = random.normal(key, 9, jnp.float32, offset)
    np.testing.assert_array_max_ulp(np.asarray(ours), expected, maxulp=LAST_PLACES)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 127, 128, 129, 1000])
def test_signs_are_the_packed_bits_of_jax_one_bit_an_element(size):
    words = np.asarray(jax.random.bits(jax.random.key(5), (-(-size // 32),)))
    i = np.arange(size)
    bit = words[i // 32] >> (31 - i % 32) & 1
    signs = random.signs(words_of(5), size, jnp.float32)
    np.testing.assert_array_equal(signs, np.where(bit == 1, -1.0, 1.0))


@pytest.mark.usefixtures("x64")
def test_float64_signs_are_the_float32_signs():
    signs = random.signs(words_of(5), 1000, jnp.float64)
    assert signs.dtype == jnp.float64
    np.testing.assert_array_equal(signs, random.signs(words_of(5), 1000, jnp.float32))


@pytest.mark.parametrize(
    "size", [1, 2, 3, 7, 2**16 - 1, 2**16, 2**16 + 1, 10**6, 2**31, 2**32 - 1]
)
def test_index_below_is_the_exact_floor_of_the_product(size):
    keys = jax.random.key_data(jax.random.split(jax.random.key(9), 500))
    pairs = [transcribed(as_ints(key), 0) for key in np.asarray(keys)]
    expected = [(hi << 32 | lo) * size >> 64 for hi, lo in pairs]
    indices = jax.jit(jax.vmap(lambda key: random.index_below(key, size)))(keys)
    np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize("size", [2, 7, 100])
def test_index_below_is_uniform(size):
    num = 40_000
    keys = jax.random.key_data(jax.random.split(jax.random.key(size), num))
    indices = jax.jit(jax.vmap(lambda key: random.index_below(key, size)))(keys)
    counts = np.bincount(indices, minlength=size)
    standard_error = np.sqrt(num * (1 / size) * (1 - 1 / size))
    assert len(counts) == size
    assert np.max(np.abs(counts - num / size)) < 5 * standard_error


@pytest.mark.parametrize("draw", [random.normal, random.signs])
def test_a_draw_is_the_same_under_jit_and_vmap(draw):
    keys = jnp.stack([words_of(seed) for seed in range(3)])
    alone = np.stack([draw(key, 100, jnp.float32) for key in keys])
    jitted = jax.jit(lambda key: draw(key, 100, jnp.float32))
    np.testing.assert_array_max_ulp(
        np.stack([jitted(key) for key in keys]), alone, maxulp=LAST_PLACES
    )
    np.testing.assert_array_max_ulp(
        np.asarray(jax.vmap(jitted)(keys)), alone, maxulp=LAST_PLACES
    )


def test_bits_are_frozen_in_version_1_of_the_key_contract():
    assert random.KEY_CONTRACT_VERSION == 1
    key = random.key_data("test", 42)
    np.testing.assert_array_equal(key, [0, 42])
    np.testing.assert_array_equal(
        random.bits(key, 4), [2098992034, 2919706841, 2646866425, 2409546199]
    )
    np.testing.assert_array_equal(random.fold_in(key, 3), [3134548294, 894150801])


@pytest.mark.parametrize(
    "key", [5, np.int64(5), np.uint8(5), jnp.int32(5)], ids=lambda k: type(k).__name__
)
def test_an_integer_of_any_kind_is_the_seed_of_a_key(key):
    np.testing.assert_array_equal(random.key_data("test", key), words_of(5))


def test_a_typed_key_is_its_own_words():
    np.testing.assert_array_equal(
        random.key_data("test", jax.random.key(5)), words_of(5)
    )


@pytest.mark.parametrize(
    "key",
    [
        None,
        True,
        1.5,
        "0",
        np.array([0, 5], np.uint32),
        jnp.array([0, 5], jnp.uint32),
        jnp.float32(1),
    ],
    ids=repr,
)
def test_what_is_no_key_is_refused(key):
    with raises(TypeError, "f", "key", "must"):
        random.key_data("f", key)


def test_several_keys_at_once_are_refused():
    with raises(TypeError, "f", "key", "one key", "jax.vmap"):
        random.key_data("f", jax.random.split(jax.random.key(0), 2))


def test_a_key_of_another_generator_is_refused():
    with raises(TypeError, "f", "key", "threefry2x32", "rbg"):
        random.key_data("f", jax.random.key(0, impl="rbg"))
