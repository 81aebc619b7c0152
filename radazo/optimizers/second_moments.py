"""Granularities of a second moment: which elements share one, to save memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from radazo import core, naming, validation


class Granularity(NamedTuple):
    """Functions that reduce squares to a second moment and expand it again.

    Attributes:
      zeros: `zeros(params) -> nu`, the initial second moment, at least float32.
      squares: `squares(tree, nu) -> like nu`, the squares of `tree`, a pytree like the
        parameters, averaged over the elements that share a second moment.
      each: `each(nu, tree) -> like tree`, the second moment of each element; leaves
        need only broadcast against those of `tree`.
    """

    zeros: Callable[[core.Params], Any]
    squares: Callable[[core.Params, Any], Any]
    each: Callable[[Any, core.Params], Any]

    __repr__ = naming.constant_repr


class RowsAndColumns(NamedTuple):
    """Second moment of a leaf with at least two axes if `factored`.

    Attributes:
      rows, columns: Means over the last axis and over the second to last.
    """

    rows: jax.Array
    columns: jax.Array


def _leaf_by_leaf(
    reduce: Callable[[jax.Array], Any], expand: Callable[[Any], jax.Array]
) -> Granularity:
    """Build a granularity from functions that reduce and expand a single leaf."""

    def zeros(leaf: Any) -> Any:
        if not core.is_floating(leaf):
            return jnp.zeros((), jnp.float32)  # Placeholder.
        shape = jax.ShapeDtypeStruct(leaf.shape, core.wide(leaf.dtype))
        kept = jax.eval_shape(reduce, shape)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)

    def squares(leaf: Any, nu: Any) -> Any:
        return reduce(_square(leaf, nu)) if core.is_floating(leaf) else nu

    return Granularity(
        lambda params: jax.tree.map(zeros, params),
        lambda tree, nu: jax.tree.map(squares, tree, nu),
        lambda nu, tree: jax.tree.map(lambda _, nu: expand(nu), tree, nu),
    )


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
    leaves = filter(core.is_floating, jax.tree.leaves(params))
    return jnp.zeros((), core.wide(*(x.dtype for x in leaves)))


def _mean_of_all(tree: core.Params, nu: jax.Array) -> jax.Array:
    squares = [_square(x, nu) for x in jax.tree.leaves(tree) if core.is_floating(x)]
    sums = [jnp.sum(square).astype(nu.dtype) for square in squares]
    return sum(sums, jnp.zeros((), nu.dtype)) / max(sum(x.size for x in squares), 1)


per_coordinate = _leaf_by_leaf(lambda square: square, lambda nu: nu)
"""One second moment per element, as in Adam: one copy of the parameters."""

factored = _leaf_by_leaf(_factor, _product)
"""nuᵢⱼ = rᵢ · cⱼ / mean r, with means r and c of the squares over the last axis and the
one before, as in Adafactor (Shazeer and Stern, 2018): n + m numbers for n · m elements.
Vectors and matrices with one row or column keep one second moment per element."""

per_leaf = _leaf_by_leaf(_mean, lambda nu: nu)
"""One second moment per leaf: one number each."""

scalar = Granularity(
    _one_zero, _mean_of_all, lambda nu, tree: jax.tree.map(lambda leaf: nu, tree)
)
"""One second moment of all floating-point elements. Elements that the `mask` of an
estimator excludes count as zeros."""

_HINT = "Pass a granularity, e.g. `radazo.optimizers.scalar`."
validation.declare(validation.instance, "granularity", of=Granularity, hint=_HINT)
