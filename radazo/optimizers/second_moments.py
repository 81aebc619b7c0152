"""Which elements share a second moment: from one number for all to one for each.

  per_coordinate   nuᵢ = mean over time of gᵢ²
  factored         of a matrix rows r and columns c, nuᵢⱼ = rᵢ · cⱼ / mean r
  per_leaf         one number a leaf, of the mean of its gᵢ²
  scalar           one number, of the mean of gᵢ² over all leaves

Here g is what comes in: a gradient, or the momentum in R-AdaZO. Fewer numbers are less
memory and less noise. What they cannot say is how elements that share one differ; in
high dimension that is little, since every element of an estimate has the same noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from radazo import core, naming, validation


class Granularity(NamedTuple):
    """Which elements share a second moment, in three functions.

    Attributes:
      zeros: `zeros(params) -> nu`, at its start: float32 at least.
      squares: `squares(tree, nu) -> like nu`, the mean of the squares of `tree`, a
        pytree like the parameters, over the elements that share.
      each: `each(nu, tree) -> like tree`, the second moment of each element, or what
        broadcasts against a leaf.
    """

    zeros: Callable[[core.Params], Any]
    squares: Callable[[core.Params, Any], Any]
    each: Callable[[Any, core.Params], Any]

    __repr__ = naming.constant_repr


class RowsAndColumns(NamedTuple):
    """The second moment of a leaf with two axes or more, if it is `factored`.

    Attributes:
      rows: The mean over the last axis.
      columns: The mean over the last axis but one.
    """

    rows: jax.Array
    columns: jax.Array


def check(api_name: str, granularity: Any) -> None:
    """`granularity` is one."""
    hint = "Pass `radazo.optimizers.per_coordinate`, `radazo.optimizers.scalar`, say."
    validation.instance(api_name, "granularity", granularity, Granularity, hint)


def _leaf_by_leaf(
    reduce: Callable[[jax.Array], Any], expand: Callable[[Any], jax.Array]
) -> Granularity:
    """What is kept of the squares of a leaf, and the leaf again of what is kept."""

    def zeros(params: core.Params) -> Any:
        def start(leaf: Any) -> Any:
            if not core.is_floating(leaf):
                return jnp.zeros((), jnp.float32)  # It holds the place.
            shape = jax.ShapeDtypeStruct(leaf.shape, core.wide(leaf.dtype))
            kept = jax.eval_shape(reduce, shape)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)

        return jax.tree.map(start, params)

    def squares(tree: core.Params, nu: Any) -> Any:
        def mean(leaf: Any, old: Any) -> Any:
            if not core.is_floating(leaf):
                return old
            return reduce(_square(leaf, old))

        return jax.tree.map(mean, tree, nu)

    def each(nu: Any, tree: core.Params) -> Any:
        return jax.tree.map(
            lambda leaf, kept: expand(kept) if core.is_floating(leaf) else kept,
            tree,
            nu,
        )

    return Granularity(zeros, squares, each)


def _square(leaf: jax.Array, old: Any) -> jax.Array:
    dtypes = [moment.dtype for moment in jax.tree.leaves(old)]
    return jnp.square(leaf.astype(core.wide(leaf.dtype, *dtypes)))


def _mean(square: jax.Array) -> jax.Array:
    return jnp.sum(square) / max(square.size, 1)


def _factor(square: jax.Array) -> Any:
    if square.ndim < 2 or min(square.shape[-2:]) < 2:
        return square
    return RowsAndColumns(jnp.mean(square, axis=-1), jnp.mean(square, axis=-2))


def _product(kept: Any) -> jax.Array:
    if not isinstance(kept, RowsAndColumns):
        return kept
    mean = jnp.mean(kept.rows, axis=-1, keepdims=True)
    share = kept.columns / jnp.where(mean > 0, mean, jnp.ones_like(mean))
    return kept.rows[..., :, None] * share[..., None, :]


def _one_zero(params: core.Params) -> jax.Array:
    dtypes = [x.dtype for x in jax.tree.leaves(params) if core.is_floating(x)]
    return jnp.zeros((), core.wide(*dtypes))


def _mean_of_all(tree: core.Params, nu: jax.Array) -> jax.Array:
    parts = [_square(x, nu) for x in jax.tree.leaves(tree) if core.is_floating(x)]
    total = jnp.zeros((), nu.dtype)
    for part in parts:
        total = total + jnp.sum(part).astype(nu.dtype)
    return total / max(sum(part.size for part in parts), 1)


per_coordinate = _leaf_by_leaf(lambda square: square, lambda nu: nu)
"""A second moment of each element, as in Adam: one copy of the parameters."""

factored = _leaf_by_leaf(_factor, _product)
"""Rows and columns of the last two axes of a leaf, as in Adafactor (Shazeer and Stern,
2018); vectors, and matrices of one row or column, have one of each element. Exact where
the squares of a matrix are of rank one. n + m numbers for n · m elements."""

per_leaf = _leaf_by_leaf(_mean, lambda nu: nu)
"""One second moment a leaf: a number each."""

scalar = Granularity(
    _one_zero, _mean_of_all, lambda nu, tree: jax.tree.map(lambda leaf: nu, tree)
)
"""One second moment of all elements of all floating-point leaves: one number. Leaves
that an estimator's `mask` leaves out count as zeros."""
