"""What values at a few points say: their noise, and slopes and bends by distance.

A rung is a distance t; along directions u of the unit sphere f is taken at x ± t·u.
`noise_of` equally spaced values is what differences of high order leave of them.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import base, checks, directions, leaves

STENCIL = 7  # Values close together, of which the noise is told.

# value_at(k, t): f at x + t · direction k of the unit sphere.
ValueAt = Callable[[int, float], float]


class Rungs(NamedTuple):
    """What was seen at each distance: (n,) each.

    Attributes:
      distances: Ascending.
      power: Mean square of slopes, without that of noise.
      bend: Mean square of second differences, likewise.
      curvature: Mean second difference.
      spread: Estimate of ‖∇²f‖ / √d, by the Frobenius norm.
    """

    distances: np.ndarray
    power: np.ndarray
    bend: np.ndarray
    curvature: np.ndarray
    spread: np.ndarray

    def between(self, name: str, distances: np.ndarray) -> np.ndarray:
        """One of them at other distances, by a line in logarithms; flat beyond."""
        logs = np.log(np.maximum(getattr(self, name), 1e-300))
        return np.exp(np.interp(np.log(distances), np.log(self.distances), logs))


def taken(value_at: ValueAt, distance: float, which: Iterable[int]) -> np.ndarray:
    """(n, 2) values at x ± t·u."""
    return np.array([(value_at(k, distance), value_at(k, -distance)) for k in which])


def rungs(
    pairs: dict[float, np.ndarray], dim: int, value: float, noise: float
) -> Rungs:
    """What pairs of values say, by distance; those where none is finite are left out.

      s² = mean ((f(x + t·u) − f(x − t·u)) / 2t)² − σ² / 2t²
      hᵢ = (f(x + t·u) + f(x − t·u) − 2 f(x)) / t²
      h² = (mean hᵢ)² + (d + 2) / 2 · var hᵢ, likewise without what σ adds

    h is ‖∇²f‖ / √d where f is a quadratic, since var uᵀAu = 2 / (d + 2) ·
    (‖A‖² / d − (tr A / d)²). What noise drowns is taken from the next longer distance:
    of a smooth function it is the same there.
    """
    rows = []
    for t in sorted(pairs):
        up, down = pairs[t][np.isfinite(pairs[t]).all(axis=1)].T
        if len(up) < 2:
            continue
        slopes, seconds = (up - down) / (2 * t), (up + down - 2 * value) / t**2
        mean, many = np.mean(seconds), (dim + 2) / 2
        raw = np.mean(slopes**2), np.mean(seconds**2)
        # f(x) is noisy too, and shared: it is the mean of a few values.
        own, shared = 2 * noise**2 / t**4, 4 / STENCIL * noise**2 / t**4
        added = noise**2 / (2 * t**2), own + shared, own * (1 / len(up) + many) + shared
        raw = *raw, mean**2 + many * np.var(seconds, ddof=1)
        rows.append((t, mean, raw, added))
    if not rows:
        nothing = np.zeros(0)
        return Rungs(nothing, nothing, nothing, nothing, nothing)
    distances, curvature, raw, added = map(np.array, zip(*rows, strict=True))
    known = raw >= 3 * added
    clear = np.where(known, raw - added, 0.0)
    for i in range(len(clear) - 2, -1, -1):
        clear[i] = np.where(known[i], clear[i], clear[i + 1])
    return Rungs(distances, clear[:, 0], clear[:, 1], curvature, np.sqrt(clear[:, 2]))


def eps(layout: leaves.Layout, params: base.Params) -> float:
    """The coarsest relative spacing of numbers among the perturbed leaves."""
    return max(float(jnp.finfo(x.dtype).eps) for x in _active(layout, params))


def size(layout: leaves.Layout, params: base.Params) -> float:
    """Root mean square of the perturbed elements, 1 if they are all zero."""
    squares = [
        float(jnp.sum(jnp.square(x.astype(base.wide(x.dtype)))))
        for x in _active(layout, params)
    ]
    return math.sqrt(sum(squares) / max(layout.dim, 1)) or 1.0


def _active(layout: leaves.Layout, params: base.Params) -> list[Any]:
    pairs = zip(jax.tree.leaves(params), layout.active, strict=True)
    return [jnp.asarray(leaf) for leaf, on in pairs if on]


def value_oracle(
    where: str,
    value_fn: base.ValueFn,
    params: base.Params,
    layout: leaves.Layout,
    words: jax.Array,
) -> ValueAt:
    """`value_fn` along directions of this key, called as it is, from outside of JAX."""

    def value_at(k: int, distance: float) -> float:
        moved = _moved(
            layout,
            words,
            _active(layout, params),
            jnp.uint32(k),
            jnp.asarray(distance, layout.dtype),
        )
        # The rest stays what it is: a jitted function would make arrays of it.
        all_leaves, treedef = jax.tree.flatten(params)
        left = iter(moved)
        pairs = zip(all_leaves, layout.active, strict=True)
        point = treedef.unflatten(next(left) if on else leaf for leaf, on in pairs)
        with checks.traceable(where):
            return _number(where, value_fn(point))

    return value_at


@functools.partial(jax.jit, static_argnums=0)
def _moved(
    layout: leaves.Layout,
    words: jax.Array,
    active: list[Any],
    k: jax.Array,
    distance: jax.Array,
) -> Any:
    """The perturbed leaves, `distance` along direction k of the unit sphere."""
    law, alone = directions.sphere, _alone(layout)
    prepared = law.prepare(words, 1, layout.dim, layout.dtype)
    drawn = law.draw(prepared, k, layout.dim, layout.dtype)
    scale = lax.rsqrt(jnp.sum(jnp.square(drawn)))
    return leaves.perturb(alone, active, drawn, distance * scale, k)


def _alone(layout: leaves.Layout) -> leaves.Layout:
    """The layout of a list of the perturbed leaves."""
    sizes = tuple(
        size for size, on in zip(layout.sizes, layout.active, strict=True) if on
    )
    return layout._replace(active=(True,) * len(sizes), sizes=sizes)


def _number(where: str, value: Any) -> float:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.zeros(0)  # Leaves of several shapes, or a key.
    real = jnp.isdtype(array.dtype, ("bool", "integral", "real floating"))
    if not real or array.ndim:
        got = f"a {type(value).__name__}: {value!r}"[:200]
        way_out = "Return a scalar; leave `aux` and terms out."
        checks.fail(where, "value_fn", "return a real number", got, way_out, TypeError)
    return float(array)


def value_and_noise(where: str, value_at: ValueAt, spacing: float) -> Any:
    """f(x), and the standard deviation of one value."""
    middle = STENCIL // 2
    places = (np.arange(STENCIL) - middle) * spacing
    values = np.array([value_at(0, place) for place in places])
    if not math.isfinite(values[middle]):
        got, way_out = repr(float(values[middle])), "Start where f has a value."
        checks.fail(where, "value_fn", "be finite at `params`", got, way_out)
    if not np.isfinite(values).all():
        return float(values[middle]), 0.0
    return float(values.mean()), noise_of(values)


def noise_of(values: np.ndarray) -> float:
    """Standard deviation of the noise of equally spaced values of a smooth function.

      σₖ² = (k!)² / (2k)! · mean of the squares of the k-th differences

    is that of independent noise at each k whose differences no longer show the
    function: the first that changes sign with three σ in a row within a factor 4.
    Where there is none, the function changes too fast: the smallest is a bound.
    """
    found, changes, table = [], [], values
    for k in range(1, len(values)):
        table = np.diff(table)
        gamma = math.factorial(k) ** 2 / math.factorial(2 * k)
        found.append(math.sqrt(gamma * float(np.mean(np.square(table)))))
        changes.append(table.min() < 0 < table.max())
    for k in range(len(found) - 2):
        near = found[k : k + 3]
        if changes[k] and max(near) <= 4 * min(near):
            return found[k]
    return min(found)
