"""What values at a few points say: their noise, and slopes and bends by distance.

A rung is a distance t; along directions u of the unit sphere f is taken at x ± t·u.
`noise_of` equally spaced values is what differences of high order leave of them.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, directions, flat, validation

STENCIL = 7  # Values close together, of which f(x) and the noise are told.
_OF_VALUE = 131 / 231  # Variance of what they say of f(x), by that of one.
# Noise is told from seven values alone. Of noise and nothing else, in 99 of 100 cases
# the mean square of six slopes is less than this times what was told, at the clearest
# of five distances (3 alone: in 70).
_SEEN = 18
_LARGEST = 1e100  # What is more has no square to reckon with: a penalty, as infinity.

# value_at(k, t): f at x + t · direction k of the unit sphere, a scalar of NumPy.
ValueAt = Callable[[int, float], Any]


class Rungs(NamedTuple):
    """What was seen at each distance: (n,) each.

    Attributes:
      distances: Ascending.
      power: Mean square of slopes, without that of noise.
      bend: Mean square of second differences, likewise.
      curvature: Mean second difference.
      spread: Estimate of ‖∇²f‖ / √d, by the Frobenius norm.
      seen: Whether slopes stand out from noise at one of them: none otherwise.
    """

    distances: np.ndarray
    power: np.ndarray
    bend: np.ndarray
    curvature: np.ndarray
    spread: np.ndarray
    seen: bool

    def between(self, name: str, distances: np.ndarray) -> np.ndarray:
        """One of them at other distances, by a line in logarithms; flat beyond."""
        logs = np.log(np.maximum(getattr(self, name), 1e-300))
        return np.exp(np.interp(np.log(distances), np.log(self.distances), logs))


def taken(value_at: ValueAt, distance: float, which: Iterable[int]) -> np.ndarray:
    """(n, 2) values at x ± t·u."""
    pairs = [(value_at(k, distance), value_at(k, -distance)) for k in which]
    return np.array(pairs, np.float64)


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
        up, down = pairs[t][(np.abs(pairs[t]) < _LARGEST).all(axis=1)].T
        if len(up) < 2:
            continue
        slopes, seconds = (up - down) / (2 * t), (up + down - 2 * value) / t**2
        mean, many = np.mean(seconds), (dim + 2) / 2
        raw = np.mean(slopes**2), np.mean(seconds**2)
        # f(x) is noisy too, and shared.
        own, shared = 2 * noise**2 / t**4, 4 * _OF_VALUE * noise**2 / t**4
        of_mean = own / len(up) + shared
        added = noise**2 / (2 * t**2), own + shared, of_mean + many * own, of_mean
        raw = *raw, mean**2 + many * np.var(seconds, ddof=1), mean**2
        rows.append((t, mean, raw, added))
    if not rows:
        nothing = np.zeros(0)
        return Rungs(nothing, nothing, nothing, nothing, nothing, seen=False)
    distances, curvature, raw, added = map(np.array, zip(*rows, strict=True))
    seen = bool(np.any(raw[:, 0] > _SEEN * added[:, 0]))
    known = raw >= 3 * added
    clear = np.where(known, raw - added, 0.0)
    for i in range(len(clear) - 2, -1, -1):
        clear[i] = np.where(known[i], clear[i], clear[i + 1])
        curvature[i] = curvature[i if known[i, 3] else i + 1]
    spread = np.sqrt(clear[:, 2])
    return Rungs(distances, clear[:, 0], clear[:, 1], curvature, spread, seen)


def eps(layout: flat.Layout, params: core.Params) -> float:
    """The coarsest relative spacing of numbers among the perturbed leaves."""
    return max(float(jnp.finfo(x.dtype).eps) for x in _active(layout, params))


def size(layout: flat.Layout, params: core.Params) -> float:
    """Root mean square of the perturbed elements, 1 if they are all zero."""
    active = [x.astype(core.wide(x.dtype)) for x in _active(layout, params) if x.size]
    largest = max(float(jnp.max(jnp.abs(x))) for x in active)
    if not largest:
        return 1.0
    # Squares may be no numbers of the type of x, but those of shares are. Not at once:
    # XLA multiplies by the inverse, which may be none either.
    root = math.sqrt(largest)
    squares = [float(jnp.sum(jnp.square(x / root / root))) for x in active]
    return largest * math.sqrt(sum(squares) / layout.dim)


def _active(layout: flat.Layout, params: core.Params) -> list[Any]:
    pairs = zip(jax.tree.leaves(params), layout.active, strict=True)
    return [jnp.asarray(leaf) for leaf, on in pairs if on]


def value_oracle(
    api_name: str,
    value_fn: core.ValueFn,
    params: core.Params,
    layout: flat.Layout,
    words: jax.Array,
) -> ValueAt:
    """`value_fn` along directions of this key, called as it is, from outside of JAX."""

    def value_at(k: int, distance: float) -> Any:
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
        with validation.traceable(api_name):
            return _number(api_name, value_fn(point))

    return value_at


@functools.partial(jax.jit, static_argnums=0)
def _moved(
    layout: flat.Layout,
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
    return flat.perturb(alone, active, drawn, distance * scale, k)


def _alone(layout: flat.Layout) -> flat.Layout:
    """The layout of a list of the perturbed leaves."""
    sizes = tuple(
        size for size, on in zip(layout.sizes, layout.active, strict=True) if on
    )
    return layout._replace(active=(True,) * len(sizes), sizes=sizes)


def _number(api_name: str, value: Any) -> Any:
    """The value as a scalar of NumPy, in the type in which it was returned."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.zeros(0)  # Leaves of several shapes, or a key.
    known = jnp.isdtype(array.dtype, ("bool", "integral", "real floating"))
    if isinstance(value, numbers.Real) and not known:
        array = np.asarray(validation.real(value))  # A fraction, or of many digits.
    if array.ndim or not jnp.isdtype(array.dtype, ("integral", "real floating")):
        got = f"a {type(value).__name__}: {value!r}"[:200]
        hint = "Return a scalar; leave `aux` and terms out."
        validation.fail(
            api_name, "value_fn", "return a real number", got, hint, TypeError
        )
    return array[()]


def _rounding(value: Any) -> float:
    """Standard deviation of what rounding takes from a value of this type."""
    whole = jnp.issubdtype(value.dtype, jnp.integer)
    unit = abs(float(np.spacing(float(value) if whole else value)))
    return (max(unit, 1.0) if whole else unit) / math.sqrt(12)


def value_and_noise(api_name: str, value_at: ValueAt, spacing: float) -> Any:
    """f(x), and the standard deviation of one value, rounding at least.

    A mean of values around x is f(x) and what curvature adds, which near an optimum is
    all there is to see. So f(x) is told by the polynomial of degree five that is
    closest to the seven values, of which their sixth difference is all that it misses.
    """
    middle = STENCIL // 2
    places = (np.arange(STENCIL) - middle) * spacing
    taken = [value_at(0, place) for place in places]
    values = np.array(taken, np.float64)
    if not math.isfinite(values[middle]):
        got, hint = repr(float(values[middle])), "Start where f has a value."
        validation.fail(api_name, "value_fn", "be finite at `params`", got, hint)
    if not np.isfinite(values).all():
        return float(values[middle]), _rounding(taken[middle])
    value = values[middle] + 5 / 231 * np.diff(values, STENCIL - 1)[0]
    return float(value), max(noise_of(values), *map(_rounding, taken))


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
