"""The box in which `minimize` keeps the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import base, checks, trees


def box(
    where: str, params: base.Params, bounds: Any
) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """The projection of a list of arrays on the box, checked against the parameters."""
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2):
        checks.fail(
            where,
            "bounds",
            "be a pair (lower, upper)",
            f"{bounds!r}"[:200],
            "Either may be a number or a pytree like `params`; use inf for no bound.",
            TypeError,
        )
    arrays, rest = trees.split(params)
    shapes = [np.shape(x) for x in jax.tree.leaves(params)]

    def side(bound: Any) -> list[np.ndarray]:
        leaves, treedef = jax.tree.flatten(bound)
        try:
            full = [np.asarray(x, np.float64) for x in leaves]
        except (TypeError, ValueError):
            full = []
        if len(full) == 1 and full[0].ndim == 0 and treedef == jax.tree.structure(0):
            return full * len(arrays)
        fits = len(full) == len(shapes) and treedef == rest.treedef
        pairs = zip(full, shapes, strict=fits)
        if not (fits and all(b.shape in ((), shape) for b, shape in pairs)):
            checks.fail(
                where,
                "bounds",
                "be numbers or have the structure and the shapes of `params`",
                f"{bound!r}"[:200],
                f"Its shapes are {rest.treedef.unflatten(shapes)}; "
                "a leaf may be a number.",
            )
        return rest.pick(full)

    lower, upper = side(bounds[0]), side(bounds[1])
    if not all(np.all(low <= up) for low, up in zip(lower, upper, strict=True)):
        checks.fail(
            where,
            "bounds",
            "have lower ≤ upper everywhere",
            f"{bounds!r}"[:200],
            "Give them as (lower, upper), without NaN.",
        )

    def clip(x: jax.Array, low: np.ndarray, up: np.ndarray) -> jax.Array:
        if not base.is_floating(x):
            return x
        return optax.projections.projection_box(
            x, jnp.asarray(low, x.dtype), jnp.asarray(up, x.dtype)
        )

    return lambda arrays: [
        clip(x, low, up) for x, low, up in zip(arrays, lower, upper, strict=True)
    ]
