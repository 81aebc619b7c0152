"""A function at points along a direction, without the memory of such a point."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, directions, flat, offsets, random, validation
from radazo.evaluate import lazy


def perturbed_value_fn(
    value_fn: Callable[..., Any],
    sampler: directions.DirectionSampler = directions.gaussian,
    *,
    mask: core.Mask = None,
) -> Callable[..., Any]:
    """A function at x + distance · u, where no copy of x is made.

    For loops of your own around a model that fits into memory once. The program of
    `value_fn`, written as ever, is walked, and noise is drawn where it is used: layers
    that a `jax.lax.scan` runs over one by one within it, of a table the rows that are
    looked up, a large matrix in blocks of a product, any other leaf just before its
    use. u is direction 0 of the key, as `sample_directions` gives it.

    Args:
      value_fn: `value_fn(params, *args, **kwargs)`, whatever it returns.
      sampler: `gaussian`, `sphere` or `rademacher`: laws whose directions can be
        drawn in parts.
      mask: Which leaves are perturbed, as in `finite_difference_estimator`.
    Returns:
      A function `(key, params, distance, *args, **kwargs)` with the value of
      `value_fn(params + distance · u, *args, **kwargs)`, rounded as that is but for
      products taken in blocks. Put `jax.jit` around it.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind, or the law draws its
        directions as a whole; in a call, if `key` or a leaf cannot be used.
    Cost:
      One function value. Beside the parameters the memory of the function, and that of
      the largest part which is perturbed at once.
    Example:
      >>> f = jax.jit(perturbed(lambda x, scale: scale * jnp.sum(x)))
      >>> up, down = f(0, jnp.ones(5), 0.1, 2.0), f(0, jnp.ones(5), -0.1, 2.0)
      >>> print((up + down) / 2)
      10.0
    References:
      Malladi et al., Fine-tuning language models with just forward passes, 2023.
      arXiv:2305.17333 (which moves the parameters there and back).
    """
    api_name = "perturbed_value_fn"
    validation.function(
        api_name, "value_fn", value_fn, "It takes the parameters first."
    )
    validation.check(api_name, sampler=sampler)
    directions.check_parts(api_name, sampler)

    def value(
        key: core.Key, params: core.Params, distance: Any, *args: Any, **kwargs: Any
    ) -> Any:
        layout = flat.layout(api_name, params, mask, in_parts=True)
        own = random.fold_in(random.key_data(api_name, key), 0)
        scale = scale_of(sampler, own, layout)
        moved = jnp.asarray(distance, layout.dtype) * scale
        noise = noise_along(sampler, own, layout, moved)
        return lazy.evaluate(
            lambda params: value_fn(params, *args, **kwargs), params, layout, noise
        )

    return value


def noise_along(
    law: directions.DirectionSampler,
    key: jax.Array,
    layout: flat.Layout,
    distance: jax.Array,
) -> lazy.Noise:
    """`distance` times what is drawn from the key of a direction."""
    return lazy.Noise(
        lambda offset, size: distance * law.part(key, size, layout.dtype, offset),
        lambda indices: distance * law.at(key, indices, layout.dtype),
    )


def scale_of(
    law: directions.DirectionSampler, key: jax.Array, layout: flat.Layout
) -> jax.Array:
    """By how much what is drawn has to be multiplied, which depends on its norm."""
    if law.scale is None:
        return jnp.ones((), layout.dtype)

    def norm(offset: Any, size: int) -> jax.Array:
        part = law.part(key, size, layout.dtype, offset)
        return jnp.sqrt(jnp.sum(jnp.square(part)))

    num, rest = divmod(layout.dim, lazy.BLOCK)

    def of_block(i: jax.Array) -> jax.Array:
        start = offsets.moved(0, i, lazy.BLOCK, layout.dim)
        return norm(start, lazy.BLOCK)

    norms = lax.map(of_block, jnp.arange(num, dtype=jnp.uint32))
    # The norms of the blocks are a vector of the same norm as all elements.
    return law.scale(jnp.append(norms, norm(num * lazy.BLOCK, rest)))
