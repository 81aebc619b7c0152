"""Stochastic rounding, which keeps small updates of low-precision weights on average.

An update below 1/512 of a bfloat16 weight is lost when the sum is rounded to nearest.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from radazo import random


def stochastic(key: jax.Array, x: jax.Array, dtype: Any, offset: Any = 0) -> jax.Array:
    """Round x stochastically to bfloat16 or float16, so that E[rounded] = x.

      rounded = ulp · ⌊x / ulp + v⌋,  v uniform on [0, 1)

    Element i uses bits offset + i of `key`. Values that `dtype` can represent,
    infinities and NaN are unchanged; finite values are clipped to the largest number.
    x is read as float32.
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
    chance = random.bits(key, x.size, offset).reshape(x.shape) >> (32 - num_bits)
    rounded = jnp.floor(x / ulp + chance.astype(jnp.float32) * 2.0**-num_bits) * ulp
    largest = float(info.max)
    rounded = jnp.clip(rounded, -largest, largest)
    # Below 2⁻¹⁰⁰ this ulp is too coarse for values that can be stored.
    is_stored = x.astype(dtype).astype(jnp.float32) == x
    return jnp.where(is_stored | ~jnp.isfinite(x), x, rounded).astype(dtype)
