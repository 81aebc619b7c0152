"""Round a number up or down by chance, so that small changes are kept in the mean.

Added to a bfloat16 weight, an update smaller than 1/512 of it changes nothing if it is
rounded to the nearest, step after step. Rounded up with the probability that is its
distance from the lower neighbour, the mean of what is stored is the number itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from radazo import random


def stochastic(key: jax.Array, x: jax.Array, dtype: Any, offset: Any = 0) -> jax.Array:
    """x in bfloat16 or float16: E[rounded] = x; exact where x can be stored.

      rounded = ulp · ⌊x / ulp + v⌋,  v uniform on [0, 1)

    v of element i is made of bits offset + i of `key`. Numbers beyond the largest stay
    the largest, infinities and NaN what they are. x is taken in float32.
    """
    if jnp.dtype(dtype).itemsize >= x.dtype.itemsize:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    info = jnp.finfo(dtype)
    words = lax.bitcast_convert_type(x, jnp.uint32)
    exponent = lax.bitcast_convert_type(words & jnp.uint32(0x7F800000), jnp.float32)
    # 2⁻¹⁰⁰ keeps the unit in the last place a normal number of float32.
    smallest = max(float(info.tiny), 2.0**-100)
    ulp = jnp.maximum(exponent, smallest) * float(info.eps)
    # So few bits that x / ulp + v is exact: x / ulp itself takes nmant + 1 of 24.
    num_bits = 22 - info.nmant
    chance = random.bits(key, x.size, offset).reshape(x.shape) >> (32 - num_bits)
    rounded = jnp.floor(x / ulp + chance.astype(jnp.float32) * 2.0**-num_bits) * ulp
    largest = float(info.max)
    rounded = jnp.clip(rounded, -largest, largest)
    # Below 2⁻¹⁰⁰ the unit above is too coarse for what could be stored.
    is_stored = x.astype(dtype).astype(jnp.float32) == x
    return jnp.where(is_stored | ~jnp.isfinite(x), x, rounded).astype(dtype)
