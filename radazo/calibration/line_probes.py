"""Slopes, second differences and noise from function values along lines.

A probe is a pair of values f(x ± t·u) at a distance t along a direction u of the unit
sphere. `noise_of` estimates the noise.
"""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, directions, flat, validation

STENCIL = 7  # Values close together, for f(x) and the noise.
_NUM_DIRECTIONS = 6
_VALUE_VARIANCE = 131 / 231  # Of f(x) from the stencil, relative to one value.
# With noise alone, the mean square of six slopes is below this multiple of its estimate
# at all of five distances in 99 of 100 cases (with a multiple of 3, in 70).
_SIGNIFICANT = 18
_LARGEST = 1e100  # Larger values, whose squares overflow, count as infinite.

# value_at(k, t): f at x + t · direction k of the unit sphere, a NumPy scalar.
ValueAt = Callable[[int, float], Any]
Pairs = dict[float, np.ndarray]  # (num, 2) values by distance.


class Probes(NamedTuple):
    """Statistics by distance: (n,) each, the noise subtracted."""

    distances: np.ndarray  # In ascending order.
    power: np.ndarray  # Mean square of slopes.
    bend: np.ndarray  # Mean square of second differences.
    curvature: np.ndarray  # Mean second difference.
    spread: np.ndarray  # Estimate of ‖∇²f‖ / √d (Frobenius norm).
    significant: bool  # Whether slopes are significant at one of the distances.

    def at(self, name: str, distances: np.ndarray) -> np.ndarray:
        """Interpolate a statistic in logarithms; constant beyond the ends."""
        logs = np.log(np.maximum(getattr(self, name), 1e-300))
        return np.exp(np.interp(np.log(distances), np.log(self.distances), logs))


def take(value_at: ValueAt, t: float) -> np.ndarray:
    """Return (num, 2) values at x ± t·u."""
    pairs = [(value_at(k, t), value_at(k, -t)) for k in range(_NUM_DIRECTIONS)]
    return np.array(pairs, np.float64)


def summarize(pairs: Pairs, dim: int, value: float, noise: float) -> Probes:
    """Compute the statistics of `calibrate` from pairs of values by distance.

    A statistic below the noise is replaced by that of the next longer distance.
    Distances without two finite pairs are omitted.
    """
    rows = []
    for t in sorted(pairs):
        up, down = pairs[t][(np.abs(pairs[t]) < _LARGEST).all(axis=1)].T
        if len(up) < 2:
            continue
        slopes, seconds = (up - down) / (2 * t), (up + down - 2 * value) / t**2
        mean, factor = np.mean(seconds), (dim + 2) / 2
        raw = np.mean(slopes**2), np.mean(seconds**2)
        raw = *raw, mean**2 + factor * np.var(seconds, ddof=1), mean**2
        # The noise of f(x) is shared by all second differences.
        own, shared = 2 * noise**2 / t**4, 4 * _VALUE_VARIANCE * noise**2 / t**4
        of_mean = own / len(up) + shared
        added = noise**2 / (2 * t**2), own + shared, of_mean + factor * own, of_mean
        rows.append((t, mean, raw, added))
    if not rows:
        return Probes(*[np.zeros(0)] * 5, significant=False)
    distances, curvature, raw, added = map(np.array, zip(*rows, strict=True))
    significant = bool(np.any(raw[:, 0] > _SIGNIFICANT * added[:, 0]))
    known = raw >= 3 * added
    clean = np.where(known, raw - added, 0.0)
    for i in range(len(clean) - 2, -1, -1):
        clean[i] = np.where(known[i], clean[i], clean[i + 1])
        curvature[i] = curvature[i if known[i, 3] else i + 1]
    power, bend, spread = clean[:, 0], clean[:, 1], np.sqrt(clean[:, 2])
    return Probes(distances, power, bend, curvature, spread, significant)


def size_and_eps(layout: flat.Layout, params: core.Params) -> tuple[float, float]:
    """Return the root mean square and the largest machine epsilon of the elements.

    The size is 1 if all perturbed elements are zero.
    """
    pairs = zip(jax.tree.leaves(params), layout.active, strict=True)
    active = [jnp.asarray(leaf) for leaf, on in pairs if on]
    eps = max(float(jnp.finfo(x.dtype).eps) for x in active)
    active = [x.astype(core.wide(x.dtype)) for x in active if x.size]
    largest = max(float(jnp.max(jnp.abs(x))) for x in active)
    if not largest:
        return 1.0, eps
    # Scale before squaring, which could overflow. Divide twice by the root: XLA
    # multiplies by the inverse, and that of `largest` could overflow too.
    root = math.sqrt(largest)
    squares = [float(jnp.sum(jnp.square(x / root / root))) for x in active]
    return largest * math.sqrt(sum(squares) / layout.dim), eps


def value_along(
    api_name: str,
    value_fn: core.ValueFn,
    params: core.Params,
    layout: flat.Layout,
    words: jax.Array,
) -> ValueAt:
    """Return `value_at`, which calls `value_fn` along directions of the key `words`."""
    value_at_sum = value_along_all(api_name, value_fn, params, layout, words)
    return lambda k, distance: value_at_sum({k: distance})


def value_along_all(
    api_name: str,
    value_fn: core.ValueFn,
    params: core.Params,
    layout: flat.Layout,
    words: jax.Array,
) -> Callable[[dict[int, float]], Any]:
    """Return f of {k: tₖ} at x + Σₖ tₖ · direction k of the unit sphere."""
    leaves, treedef = jax.tree.flatten(params)
    # Other leaves are not passed through JIT, which would make arrays of them.
    own = [leaf if on else 0 for leaf, on in zip(leaves, layout.active, strict=True)]

    def value_at_sum(distances: dict[int, float]) -> Any:
        new = own
        for k, distance in distances.items():
            t = jnp.asarray(distance, layout.dtype)
            new = _perturb(layout, words, new, jnp.uint32(k), t)
        triples = zip(new, leaves, layout.active, strict=True)
        point = treedef.unflatten(x if on else old for x, old, on in triples)
        with validation.traceable(api_name):
            return _number(api_name, value_fn(point))

    return value_at_sum


@functools.partial(jax.jit, static_argnums=0)
def _perturb(layout: flat.Layout, words: jax.Array, leaves: Any, k: Any, t: Any) -> Any:
    """Return the leaves at distance t along direction k of the unit sphere."""
    sampler = directions.sphere
    prepared = sampler.prepare(words, 1, layout.dim, layout.dtype)
    drawn = sampler.draw(prepared, k, layout.dim, layout.dtype)
    scale = lax.rsqrt(jnp.sum(jnp.square(drawn)))
    return flat.perturb(layout, leaves, drawn, t * scale, k)


def _number(api_name: str, value: Any) -> Any:
    """Return the value as a NumPy scalar of its own type."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.zeros(0)  # Ragged sequences and keys.
    known = jnp.isdtype(array.dtype, ("bool", "integral", "real floating"))
    if isinstance(value, numbers.Real) and not known:
        array = np.asarray(validation.real(value))  # Fractions and large integers.
    if array.ndim or not jnp.isdtype(array.dtype, ("integral", "real floating")):
        rule, got = "return a real number", f"a {type(value).__name__}: {value!r}"[:200]
        hint = "Return a scalar, without `aux` and terms."
        validation.fail(api_name, "value_fn", rule, got, hint, TypeError)
    return array[()]


def _rounding(value: Any) -> float:
    """Return the standard deviation of the rounding error of a value of this type."""
    whole = jnp.issubdtype(value.dtype, jnp.integer)
    unit = abs(float(np.spacing(float(value) if whole else value)))
    return (max(unit, 1.0) if whole else unit) / math.sqrt(12)


def value_and_noise(api_name: str, value_at: ValueAt, spacing: float) -> Any:
    """Return f(x), and the standard deviation of one value, at least its rounding.

    f(x) is that of the polynomial of degree five fitted to the seven values.
    """
    middle = STENCIL // 2
    taken = [value_at(0, t) for t in (np.arange(STENCIL) - middle) * spacing]
    values = np.array(taken, np.float64)
    if not math.isfinite(values[middle]):
        got, hint = repr(float(values[middle])), "Start where f has a value."
        validation.fail(api_name, "value_fn", "be finite at `params`", got, hint)
    if not np.isfinite(values).all():
        return float(values[middle]), _rounding(taken[middle])
    value = values[middle] + 5 / 231 * np.diff(values, STENCIL - 1)[0]
    return float(value), max(noise_of(values), *map(_rounding, taken))


def noise_of(values: np.ndarray) -> float:
    """Return the noise of equally spaced values of a smooth function.

      σₖ² = (k!)² / (2k)! · mean of the squares of the k-th differences

    estimates the variance of independent noise if the k-th differences no longer
    contain the function. Return the first σₖ whose differences change sign and that
    agrees with the next two within a factor of 4; else the smallest, an upper bound.
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
