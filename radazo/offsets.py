"""Where an element lies in the flat direction, beyond 2³² too.

An offset is an `int`, a traced uint32, or, where neither will do, an `Offset` of two
words: JAX has no 64-bit integers unless they are switched on. The first two cost less
and are taken wherever they reach.
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
    """offset + index · unit, which lies in the `extent` elements from `offset` on.

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
    """Whether an element of a part of this size may be the 2³²-th, or a later one."""
    return isinstance(offset, Offset) or (
        isinstance(offset, int) and offset + size > WORD
    )


def words(offset: Any) -> tuple[Any, Any]:
    """(hi, lo) of an offset."""
    if isinstance(offset, int):
        return divmod(offset, WORD)
    return offset if isinstance(offset, Offset) else (jnp.zeros_like(offset), offset)


def multiply_high(a: jax.Array, b: int) -> jax.Array:
    """The upper word of the 64-bit product of two uint32, in 16-bit pieces."""
    half, sixteen = jnp.uint32(0xFFFF), jnp.uint32(16)
    a1, a0 = a >> sixteen, a & half
    b1, b0 = jnp.uint32(b >> 16), jnp.uint32(b & 0xFFFF)
    middle = a1 * b0 + ((a0 * b0) >> sixteen)
    other = (middle & half) + a0 * b1
    return a1 * b1 + (middle >> sixteen) + (other >> sixteen)
