"""Evaluate a function along a direction without a copy of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, directions, flat, random, validation
from radazo.evaluate import lazy


def perturbed_value_fn(
    value_fn: Callable[..., Any],
    sampler: directions.DirectionSampler = directions.gaussian,
    *,
    mask: core.Mask = None,
) -> Callable[..., Any]:
    """Evaluate a function at x + distance · u without a copy of x.

    For custom loops around a model that fits into memory only once. The jaxpr of
    `value_fn` is interpreted, and noise is drawn where it is used: layer by layer in a
    `jax.lax.scan`, for the rows of a table that are looked up, in blocks for products
    with a large matrix, and otherwise leaf by leaf. u is direction 0 of the key.

    Args:
      value_fn: `value_fn(params, *args, **kwargs)`, with any output.
      sampler: `gaussian`, `sphere`, `rademacher` or `hadamard`, which can draw parts.
      mask: As in `finite_difference_estimator`.
    Returns:
      `f(key, params, distance, *args, **kwargs)`, which returns `value_fn(params +
      distance · u, *args, **kwargs)`; products in blocks may round differently.
    Raises:
      TypeError, ValueError: If an argument, a key or a leaf cannot be used.
    Cost:
      One function value. In addition to the parameters, the memory of the function and
      of the largest part that is perturbed at once.
    Example:
      >>> f = jax.jit(perturbed_value_fn(lambda x, scale: scale * jnp.sum(x)))
      >>> up, down = f(0, jnp.ones(5), 0.1, 2.0), f(0, jnp.ones(5), -0.1, 2.0)
      >>> print((up + down) / 2)
      10.0
    References:
      Malladi et al., 2023, arXiv:2305.17333 (which perturbs in place and restores).
    """
    api_name = "perturbed_value_fn"
    validation.check(api_name, value_fn=value_fn, sampler=sampler)
    directions.check_parts(api_name, sampler)

    def value(
        key: core.Key, params: core.Params, distance: Any, *args: Any, **kwargs: Any
    ) -> Any:
        layout = flat.layout(api_name, params, mask, in_parts=True)
        words = random.key_data(api_name, key)
        own = sampler.own_key(words, jnp.uint32(0), layout.dim)
        scale = scale_of(sampler, own, layout)
        distance = jnp.asarray(distance, layout.dtype) * scale
        noise = noise_along(sampler, own, layout, distance)
        return lazy.evaluate(
            lambda params: value_fn(params, *args, **kwargs), params, layout, noise
        )

    return value


def noise_along(
    sampler: directions.DirectionSampler,
    key: jax.Array,
    layout: flat.Layout,
    distance: jax.Array,
) -> lazy.Noise:
    """Return `distance` times the vector drawn from the key of a direction."""
    return lazy.Noise(
        lambda offset, size: distance * sampler.part(key, size, layout.dtype, offset),
        lambda indices: distance * sampler.at(key, indices, layout.dtype),
    )


def scale_of(
    sampler: directions.DirectionSampler, key: jax.Array, layout: flat.Layout
) -> jax.Array:
    """Return the factor from the drawn vector to the direction."""
    if sampler.scale is None:
        return jnp.ones((), layout.dtype)
    num, rest = divmod(layout.dim, lazy.BLOCK)

    def norm(i: Any, size: int = lazy.BLOCK) -> jax.Array:
        start = random.advance(0, i, lazy.BLOCK, layout.dim)
        part = sampler.part(key, size, layout.dtype, start)
        return jnp.sqrt(jnp.sum(jnp.square(part)))

    norms = lax.map(norm, jnp.arange(num, dtype=jnp.uint32))
    # The vector of block norms has the norm of all elements.
    return sampler.scale(jnp.append(norms, norm(num, rest)), layout.dim)
