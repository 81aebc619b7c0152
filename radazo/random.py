"""Random numbers as pure functions of (key, counter), which XLA fuses into consumers.

On CPU, JAX's generator is a loop that XLA cannot fuse. Here the same function,
Threefry-2x32 with 20 rounds (Salmon et al., 2011), is plain `jax.numpy`.

Key contract, version 1. With `key` the two uint32 words of a threefry key:

  fold_in(key, n)    = threefry(key, (0, n))                    as jax.random.fold_in
  bits(key)[i]       = hi ^ lo, (hi, lo) = threefry(key, i)     as jax.random.bits
  normal(key)[i]     = √2 · erf⁻¹(uniform of bits(key)[i])      as jax.random.normal
  signs(key)[i]      = −1 if bit 31 − (i mod 32) of bits(key)[i div 32] is set, else 1

where `as` means the same bits as JAX's partitionable generator at shape (d,). An
element depends only on the key, its index and the type, so part of a direction can be
drawn from its offset: an int, a traced uint32 or, beyond their range, an `Offset`. Bits
are equal on all backends; the last place of normal numbers depends on erf⁻¹.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import validation

__all__ = ["KEY_CONTRACT_VERSION"]

KEY_CONTRACT_VERSION = 1
WORD = 1 << 32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_SIGN_PARTS = 4
_IMPL = "threefry2x32"


class Offset(NamedTuple):
    """hi · 2³² + lo, both uint32."""

    hi: jax.Array
    lo: jax.Array


def advance(offset: Any, index: Any, unit: int, extent: int) -> Any:
    """Return offset + index · unit < offset + extent; `index` is an int or a uint32."""
    if isinstance(offset, int) and isinstance(index, int):
        return offset + index * unit
    index = jnp.asarray(index, jnp.uint32)
    if not _may_end_beyond(offset, extent):
        return jnp.asarray(offset, jnp.uint32) + index * jnp.uint32(unit)
    hi, lo = (jnp.uint32(word) for word in _split_offset(offset))
    low = index * jnp.uint32(unit % WORD)
    high = _multiply_high(index, unit % WORD) + index * jnp.uint32(unit // WORD)
    lo = lo + low
    return Offset(hi + high + (lo < low).astype(jnp.uint32), lo)


def _split_offset(offset: Any) -> tuple[Any, Any]:
    """Return (hi, lo) of an offset."""
    if isinstance(offset, int):
        return divmod(offset, WORD)
    return offset if isinstance(offset, Offset) else (jnp.zeros_like(offset), offset)


def _may_end_beyond(offset: Any, size: int) -> bool:
    """Return whether a part of this size may have elements beyond index 2³² − 1."""
    if isinstance(offset, int):
        return offset + size > WORD
    return isinstance(offset, Offset)


def _multiply_high(a: jax.Array, b: int) -> jax.Array:
    """Return the upper word of the 64-bit product of two uint32."""
    half, sixteen = jnp.uint32(0xFFFF), jnp.uint32(16)
    a1, a0 = a >> sixteen, a & half
    b1, b0 = jnp.uint32(b >> 16), jnp.uint32(b & 0xFFFF)
    middle = a1 * b0 + ((a0 * b0) >> sixteen)
    other = (middle & half) + a0 * b1
    return a1 * b1 + (middle >> sixteen) + (other >> sixteen)


def key_data(api_name: str, key: Any) -> jax.Array:
    """Return the two uint32 words of `key`, a typed threefry key or an integer seed."""
    rule, hint = "be a key or an integer seed", "Pass `jax.random.key(seed)` or a seed."
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -(2**63) <= key < 2**63:
            rule = f"{rule} of at most 64 bits"
            validation.fail(api_name, "key", rule, repr(key), hint)
        return jax.random.key_data(jax.random.key(key, impl=_IMPL))
    got = repr(key)
    if isinstance(key, jax.Array | np.ndarray):
        if key.ndim:
            rule = "be one key, a scalar"
            got = f"an array of shape {key.shape} and type {key.dtype}"
            hint = "Wrap raw key data by `jax.random.wrap_key_data(key)`; for several "
            hint += "keys use `jax.vmap`."
        elif jnp.issubdtype(key.dtype, np.integer):
            return jax.random.key_data(jax.random.key(key, impl=_IMPL))
        elif not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            got = f"a scalar of type {key.dtype}"
        elif (impl := str(jax.random.key_impl(key))) == _IMPL:
            return jax.random.key_data(key)
        else:
            rule, got = f"be a {_IMPL} key", f"a {impl} key"
            hint = f'Pass `jax.random.key(seed, impl="{_IMPL}")`.'
    return validation.fail(api_name, "key", rule, got, hint, TypeError)


def typed(words: jax.Array) -> jax.Array:
    """Return the typed key of two words."""
    return jax.random.wrap_key_data(words, impl=_IMPL)


def threefry(
    key: jax.Array, hi: jax.Array, lo: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Apply Threefry-2x32-20 with `key` to counters (hi, lo), element by element."""
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    hi, lo = hi + words[0], lo + words[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            hi = hi + lo
            lo = (lo << jnp.uint32(r)) | (lo >> jnp.uint32(32 - r))
            lo = lo ^ hi
        hi = hi + words[(i + 1) % 3]
        lo = lo + words[(i + 2) % 3] + jnp.uint32(i + 1)
    return hi, lo


def fold_in(key: jax.Array, data: jax.Array | int) -> jax.Array:
    """Return the key data of `jax.random.fold_in(key, data)`."""
    data = jnp.asarray(data).astype(jnp.uint32)
    return jnp.stack(threefry(key, jnp.zeros_like(data), data))


def _block(key: jax.Array, size: int, offset: Any) -> tuple[jax.Array, jax.Array]:
    """Return both words of counters offset, ...; with a uint32 they stay below 2³²."""
    first_hi, first_lo = _split_offset(offset)
    start = jnp.uint32(first_lo)
    lo = lax.iota(jnp.uint32, size) + start
    hi = jnp.zeros_like(lo)
    if _may_end_beyond(offset, size):
        hi = jnp.uint32(first_hi) + (lo < start).astype(jnp.uint32)
    return threefry(key, hi, lo)


def bits(key: jax.Array, size: int, offset: Any = 0) -> jax.Array:
    """Return elements offset, ... of `jax.random.bits(key, (d,))`, (size,) uint32."""
    hi, lo = _block(key, size, offset)
    return hi ^ lo


def normal(key: jax.Array, size: int, dtype: Any, offset: Any = 0) -> jax.Array:
    """Return (size,) standard normals in float32 or float64, elements offset, ... ."""
    return _normal(*_block(key, size, offset), dtype)


def normal_at(key: jax.Array, indices: Any, dtype: Any) -> jax.Array:
    """Return elements of `normal` at `indices`, uint32 or an `Offset` of arrays."""
    return _normal(*threefry(key, *_split_offset(indices)), dtype)


def _normal(hi: jax.Array, lo: jax.Array, dtype: Any) -> jax.Array:
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float32:
        mantissa, one = (hi ^ lo) >> jnp.uint32(9), jnp.uint32(0x3F800000)
    else:
        words = (hi.astype(jnp.uint64) << jnp.uint64(32)) | lo.astype(jnp.uint64)
        mantissa, one = words >> jnp.uint64(12), jnp.uint64(0x3FF0000000000000)
    unit = lax.bitcast_convert_type(mantissa | one, dtype) - dtype.type(1)
    low = np.nextafter(dtype.type(-1), dtype.type(0))
    uniform = jnp.maximum(low, unit * (dtype.type(1) - low) + low)
    return dtype.type(np.sqrt(2)) * lax.erf_inv(uniform)


def signs(key: jax.Array, size: int, dtype: Any, offset: Any = 0) -> jax.Array:
    """Return (size,) random signs in float32 or float64, elements offset, ... ."""

    def words(first: jax.Array, num: int) -> jax.Array:
        return bits(key, num, first)

    return unpack_signs(pack_signs(words, size, offset), size, dtype, offset)


def pack_signs(
    words: Callable[[jax.Array, int], jax.Array], size: int, offset: Any = 0
) -> jax.Array:
    """Return the words that hold the signs offset, ..., and a few more.

    `words(first, num) -> (num,) uint32` returns words first, ... of all signs.
    """
    first, before = word_and_bit(offset)
    known = isinstance(offset, int)
    num_words = -(-(size + (before if known else 31)) // 32)
    part = -(-num_words // _SIGN_PARTS)
    start = jnp.uint32(first)

    # A loop: XLA would fuse a word into its 32 elements and compute it 32 times.
    return lax.map(
        lambda i: words(start + i * jnp.uint32(part), part),
        jnp.arange(_SIGN_PARTS, dtype=jnp.uint32),
    ).reshape(-1)


def unpack_signs(words: jax.Array, size: int, dtype: Any, offset: Any = 0) -> jax.Array:
    """Return (size,) signs offset, ... from the words that `pack_signs` returns."""
    _, before = word_and_bit(offset)
    raw = sign(words[:, None] << lax.iota(jnp.uint32, 32)[None, :], dtype)
    # The barrier keeps XLA from moving the reshape into a sum, which is slow on CPU.
    flat = lax.optimization_barrier(raw.reshape(-1))
    if isinstance(offset, int):
        return flat[before : before + size]
    return lax.dynamic_slice(flat, (before,), (size,))


def signs_at(key: jax.Array, indices: Any, dtype: Any) -> jax.Array:
    """Return elements of `signs` at `indices`, uint32 or an `Offset` of arrays."""
    places, before = word_and_bit(indices)
    hi, lo = threefry(key, jnp.zeros_like(places), places)
    return sign((hi ^ lo) << before, dtype)


def word_and_bit(index: Any) -> tuple[Any, Any]:
    """Return the word that holds the sign of element `index` < 2³⁷, and its bit."""
    if isinstance(index, int):
        return divmod(index, 32)
    hi, lo = _split_offset(index)
    first = (hi << jnp.uint32(27)) | (lo >> jnp.uint32(5))
    return first, lo & jnp.uint32(31)


def sign(words: jax.Array, dtype: Any) -> jax.Array:
    """Return −1 where the top bit of a word is set, else 1."""
    dtype = jnp.dtype(dtype)
    top = words & jnp.uint32(1 << 31)
    if dtype == jnp.float32:
        raw = top | jnp.uint32(0x3F800000)
    else:
        raw = (top.astype(jnp.uint64) << jnp.uint64(32)) | jnp.uint64(0x3FF << 52)
    return lax.bitcast_convert_type(raw, dtype)


def index_below(key: jax.Array, size: int) -> jax.Array:
    """Return ⌊x · size / 2⁶⁴⌋ for 64 random bits x: uniform in [0, size), uint32."""
    hi, lo = threefry(key, jnp.uint32(0), jnp.uint32(0))
    carried = hi * jnp.uint32(size) + _multiply_high(lo, size)
    carry = carried < hi * jnp.uint32(size)
    return _multiply_high(hi, size) + carry.astype(jnp.uint32)


def round_stochastically(
    key: jax.Array, x: jax.Array, dtype: Any, offset: Any = 0
) -> jax.Array:
    """Round x stochastically to bfloat16 or float16, so that E[rounded] = x.

      rounded = ulp · ⌊x / ulp + v⌋,  v uniform on [0, 1), of bits offset + i of `key`

    Values that `dtype` can represent, infinities and NaN are unchanged; finite values
    are clipped to the largest number. x is read as float32.
    """
    if jnp.dtype(dtype).itemsize >= x.dtype.itemsize:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    info = jnp.finfo(dtype)
    words = lax.bitcast_convert_type(x, jnp.uint32)
    exponent = lax.bitcast_convert_type(words & jnp.uint32(0x7F800000), jnp.float32)
    # 2⁻¹⁰⁰ keeps the ulp a normal number of float32.
    smallest = max(float(info.tiny), 2.0**-100)
    ulp = jnp.maximum(exponent, smallest) * float(info.eps)
    # x / ulp takes nmant + 1 of 24 bits; with `num_bits` more, x / ulp + v is exact.
    num_bits = 22 - info.nmant
    chance = bits(key, x.size, offset).reshape(x.shape) >> (32 - num_bits)
    rounded = jnp.floor(x / ulp + chance.astype(jnp.float32) * 2.0**-num_bits) * ulp
    largest = float(info.max)
    rounded = jnp.clip(rounded, -largest, largest)
    # Below 2⁻¹⁰⁰ this ulp is too coarse for values that can be stored.
    is_stored = x.astype(dtype).astype(jnp.float32) == x
    return jnp.where(is_stored | ~jnp.isfinite(x), x, rounded).astype(dtype)
