"""Offsets of elements in a flat direction with more than 2³² elements.

An offset is an `int`, a traced uint32 or, beyond their range, an `Offset` of two words,
because JAX has no 64-bit integers by default. The first two are cheaper and used
wherever they suffice.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

WORD = 1 << 32


class Offset(NamedTuple):
    """hi · 2³² + lo, both uint32."""

    hi: jax.Array
    lo: jax.Array


def moved(offset: Any, index: Any, unit: int, extent: int) -> Any:
    """Return offset + index · unit, which is less than offset + extent.

    `index` is an int or a uint32, `unit` an int.
    """
    if isinstance(offset, int) and isinstance(index, int):
        return offset + index * unit
    index = jnp.asarray(index, jnp.uint32)
    if not may_end_beyond(offset, extent):
        return jnp.asarray(offset, jnp.uint32) + index * jnp.uint32(unit)
    hi, lo = (jnp.uint32(word) for word in words(offset))
    low = index * jnp.uint32(unit % WORD)
    high = multiply_high(index, unit % WORD) + index * jnp.uint32(unit // WORD)
    lo = lo + low
    return Offset(hi + high + (lo < low).astype(jnp.uint32), lo)


def may_end_beyond(offset: Any, size: int) -> bool:
    """Return whether a part of this size may have elements beyond index 2³² − 1."""
    return isinstance(offset, Offset) or (
        isinstance(offset, int) and offset + size > WORD
    )


def words(offset: Any) -> tuple[Any, Any]:
    """Return (hi, lo) of an offset."""
    if isinstance(offset, int):
        return divmod(offset, WORD)
    return offset if isinstance(offset, Offset) else (jnp.zeros_like(offset), offset)


def multiply_high(a: jax.Array, b: int) -> jax.Array:
    """Return the upper word of the 64-bit product of two uint32."""
    half, sixteen = jnp.uint32(0xFFFF), jnp.uint32(16)
    a1, a0 = a >> sixteen, a & half
    b1, b0 = jnp.uint32(b >> 16), jnp.uint32(b & 0xFFFF)
    middle = a1 * b0 + ((a0 * b0) >> sixteen)
    other = (middle & half) + a0 * b1
    return a1 * b1 + (middle >> sixteen) + (other >> sixteen)
