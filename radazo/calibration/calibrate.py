"""The first smoothing and learning rate, from some fifty function values."""

import math
from typing import Any, NamedTuple

import numpy as np

from radazo import core, differences, directions, flat, random, validation
from radazo.calibration import line_probes

_NUM_DIRECTIONS, _MAX_ADDED = 6, 2
_FAR = (0.2, 0.6, 1.8)  # By how much an element moves, in root mean squares of x.
_WITHIN, _NARROWEST = 0.9, 16  # Of the best; the longest distance by the shortest.
_DROWNED = 100  # Noise in the mean square of slopes, by these.
_B1, _EPS_ROOT = 0.9, 1e-8  # Of the rules whose rates are given.


class Calibration(NamedTuple):
    """What a few function values say; `print` it to read what was chosen and why.

    Distances are Euclidean, between points; `smoothing` alone is in units of ‖u‖.

    Attributes:
      smoothing: For the estimator.
      learning_rate: For `radazo`.
      learning_rate_zo_adamm: For `zo_adamm` and `zo_rmsprop`.
      learning_rate_zo_sgd: For `zo_sgd`.
      value: f(x), told from seven values close to it.
      noise: Standard deviation of one value: rounding at least, or chance.
      distance, shortest, longest: The distance chosen, between those that serve.
      slope_spread: Root mean square of slopes at that distance, ‖∇f‖ / √d of a smooth
        function.
      curvature: Mean second difference there, tr(∇²f) / d of a smooth function.
      reach: How far an element can go until slopes have changed altogether.
      noise_share, curvature_share: What noise and curvature add to the mean square of
        slopes, by that of the slopes themselves.
      share: Of the greedy rate, by which f falls fastest in one step.
      dim, num_directions, num_values: d, K, and the function values taken.
    """

    smoothing: float
    learning_rate: float
    learning_rate_zo_adamm: float
    learning_rate_zo_sgd: float
    value: float
    noise: float
    distance: float
    shortest: float
    longest: float
    slope_spread: float
    curvature: float
    reach: float
    noise_share: float
    curvature_share: float
    share: float
    dim: int
    num_directions: int
    num_values: int

    def __str__(self) -> str:
        """What was chosen, and why."""
        return (
            f"smoothing {self.smoothing:.3g}: compared points are {self.distance:.3g} "
            f"apart, and may be {self.shortest:.2g} to {self.longest:.2g};\n"
            f"  to the mean square of slopes noise adds {self.noise_share:.2g} of it, "
            f"curvature {self.curvature_share:.2g}\n"
            f"learning_rate {self.learning_rate:.3g} for radazo, "
            f"{self.learning_rate_zo_adamm:.3g} for zo_adamm and zo_rmsprop, "
            f"{self.learning_rate_zo_sgd:.3g} for zo_sgd:\n"
            f"  slopes of {self.slope_spread:.3g} have changed when elements have "
            f"moved by {self.reach:.3g};\n"
            f"  {self.num_directions} directions in {self.dim} dimensions, and "
            f"{self.share:.2g} of the greedy rate but for zo_sgd\n"
            f"from {self.num_values} function values near {self.value:.6g}, with a "
            f"noise of {self.noise:.2g}"
        )


def calibrate(
    key: core.Key,
    value_fn: core.ValueFn,
    params: core.Params,
    *,
    sampler: directions.DirectionSampler = directions.sphere,
    num_directions: int = 10,
    difference: differences.Difference = differences.forward,
    num_steps: int | None = None,
    mask: core.Mask = None,
) -> Calibration:
    """Choose a smoothing and a first learning rate from some fifty function values.

    Along six directions u of the unit sphere, at three distances of the size of the
    parameters and one so short that curvature hardly shows, with what noise adds taken
    off, and between them by lines in logarithms:

      s²(t) = mean ((f(x + t·u) − f(x − t·u)) / 2t)²                      slopes
      hᵢ(t) = (f(x + t·u) + f(x − t·u) − 2 f(x)) / t²         second differences
      h²(t) = (mean hᵢ)² + (d + 2) / 2 · var hᵢ        ‖∇²f‖² / d of a quadratic
      reach = s(T) / h(T) at the T from which on T > √d · s / h;
              if there is none, where s² / (h (1 + V)) is largest
      V(t)  = (d − 1) / K · (1 + (2σ² / t² + t² mean hᵢ² / 4) / s²)       forward
              (d − 1) / K · (1 + σ² / (2 t² s²))                          central

    An element can go by `reach` until slopes have changed altogether, and V is the
    variance of an estimate over ‖∇f‖². How much a step at t gets done for what is
    reached is, for distances up to T,

      min(r, 1 / r) / (1 + V),  r = s²(t) / s²(T)

    `smoothing` is in the middle, of logarithms, of the distances at which this is at
    least 0.9 of its largest, but those below 1/16 of the longest of them. On a smooth
    function they end where curvature shows in a difference. On a staircase or where
    there are kinks, slopes at short distances are nothing, or other than those that
    last: there they are the distances from which one sees across. Then

      zo_sgd     reach / (s (1 + V))                              the greedy rate
      n          √((1 + V)² + (2 / (1 − b1))²)
      zo_adamm   share · reach / n · √(1 + V)
      radazo     share · reach / n · √(1 + V (1 − b1) / (1 + b1))
      share      1 / (1 + num_steps / 3n), and ½ if `num_steps` is None

    with b1 = 0.9, and with eps_root = 1e-8 in the roots, as it is in the rules. In n
    steps of the greedy rate a run would be there: no fewer than momentum needs to turn.
    These rules step by their rate however small the gradient, and get no closer than a
    distance in proportion to it: a quadratic falls to about (share / 2)² of its start.
    Call it again with the parameters reached, and go on with what it says then.

    f(x) is told from seven values close together, and the noise σ from a table of their
    differences: chance in `value_fn` counts, and rounding, no less than that of the
    type of its values. A function of a batch that is drawn anew at each call is noisy;
    fix the batch, as a step of a run does.

    What is chosen is itself a matter of chance: nine of ten keys give a rate of 0.5 to
    1.6 times the median on Quadratic, Levy and Rosenbrock in 1,000 dimensions. At an
    optimum, or where noise is all there is to see, nothing is chosen: it is an error.

    Args:
      key: Typed key or integer seed of the directions.
      value_fn: `value_fn(params) -> scalar`, of JAX or not. It is called as it is, so
        put `jax.jit` around one of JAX.
      params: Where to look: the start of a run, or where it is now.
      sampler, num_directions, difference, mask: As the estimator will have them,
        the difference `forward` or `central`.
      num_steps: Steps of the run, if known: longer ones get a lower rate.
    Returns:
      A `Calibration`, numbers alone; `print` it.
    Raises:
      TypeError: If an argument is of the wrong kind, or `value_fn` does not return a
        real number: one of Python, no bool, or a scalar of NumPy or JAX.
      ValueError: If `value_fn` is not finite at `params`, or its slopes are nothing, or
        lost in noise, as at an optimum; or an argument is out of its range.
    Cost:
      43 to 79 function values, most often 55: 7 for the noise, 36 far from x and 12
      close to it. The last are not taken where no distance is short; 12 more are, at
      most twice, where the size of the parameters says little of the distances that
      matter. Beside the parameters a direction and a moved copy.
    Example:
      >>> value_fn = jax.jit(lambda x: jnp.sum(jnp.round(10 * jnp.abs(x - 1))))
      >>> params = jnp.zeros(100)
      >>> calibration = calibrate(0, value_fn, params, num_steps=300)
      >>> estimator = radazo.sphere_estimator(smoothing=calibration.smoothing)
      >>> optimizer = radazo.radazo(calibration.learning_rate, estimator, key=0)
      >>> result = radazo.minimize(value_fn, params, optimizer, 300)
      >>> print(value_fn(params), value_fn(result.params) < 500)
      1000.0 True
    References:
      Moré and Wild, Estimating computational noise, 2011 (the table of differences);
      Estimating derivatives of noisy simulations, 2012 (distances from noise and second
      differences). Spall, Implementation of the simultaneous perturbation algorithm for
      stochastic optimization, 1998 (gains from the first slopes).
    """
    api_name = "calibrate"
    _check(api_name, value_fn, sampler, num_directions, difference, num_steps)
    layout = flat.layout(api_name, params, mask)
    words = random.key_data(api_name, key)
    if not layout.dim:
        hint = "Pass arrays of floating point, and a mask that lets some be moved."
        rule, got = "have elements to move", "none among the leaves"
        validation.fail(api_name, "params", rule, got, hint)
    value_at = line_probes.value_oracle(api_name, value_fn, params, layout, words)
    size, eps = line_probes.size(layout, params), line_probes.eps(layout, params)
    norm = math.sqrt(layout.dim)
    value, noise = line_probes.value_and_noise(
        api_name, value_at, size * norm * math.sqrt(eps)
    )
    forward = difference is differences.forward
    seen = _Seen(layout.dim, num_directions, forward, num_steps, value, noise)
    far = _far(api_name, value_at, seen, size)
    pairs = far | _close(value_at, seen, far, 8 * eps * size * norm)
    view = _rungs(seen, pairs)
    reach, shortest, distance, longest = _chosen(view, seen, min(far))
    units = math.sqrt(layout.dim / sampler.factor(layout.dim))
    num_values = line_probes.STENCIL + sum(x.size for x in pairs.values())
    told = _told(view, seen, distance)
    _check_told(api_name, told, noise, distance, reach * norm)
    lasting = math.hypot(1 + told.variance, 2 / (1 - _B1))
    share = 0.5 if num_steps is None else 1 / (1 + num_steps / (3 * lasting))
    greedy = reach / lasting
    spread = math.sqrt(told.power)
    # By which a rule divides: the root mean square of an element of what it averages.
    shrunk = told.variance * (1 - _B1) / (1 + _B1)
    of_mean, of_each = (
        math.sqrt(1 + v + _EPS_ROOT / told.power) for v in (shrunk, told.variance)
    )
    return Calibration(
        smoothing=distance / units,
        learning_rate=share * greedy * of_mean,
        learning_rate_zo_adamm=share * greedy * of_each,
        learning_rate_zo_sgd=reach / (spread * (1 + told.variance)),
        value=value,
        noise=noise,
        distance=distance,
        shortest=shortest,
        longest=longest,
        slope_spread=spread,
        curvature=float(np.interp(distance, view.distances, view.curvature)),
        reach=reach,
        noise_share=told.noise_share,
        curvature_share=told.curvature_share,
        share=share,
        dim=layout.dim,
        num_directions=num_directions,
        num_values=num_values,
    )


def _check(
    api_name: str,
    value_fn: Any,
    sampler: Any,
    num_directions: Any,
    difference: Any,
    num_steps: Any,
) -> None:
    hint = "It takes the parameters, and returns what is to be minimized."
    validation.function(api_name, "value_fn", value_fn, hint)
    validation.check(api_name, sampler=sampler)
    hint = "It is that of the estimator; 10 is a good start."
    validation.integer(api_name, "num_directions", num_directions, 1, hint)
    if difference not in (differences.forward, differences.central):
        validation.fail(
            api_name,
            "difference",
            "be `radazo.forward` or `radazo.central`",
            repr(difference)[:200],
            "For other differences the smoothing is a matter of their own.",
        )
    if num_steps is not None:
        hint = "It is the number of steps of the run; leave it out if unknown."
        validation.integer(api_name, "num_steps", num_steps, 1, hint)


def _check_told(
    api_name: str, told: "_Told", noise: float, distance: float, within: float
) -> None:
    """Slopes are told where noise is at most twice their mean square. Where that is a
    hundred times as much, or slopes have changed `within` less than was looked at, what
    was told is of other places: by it one would step blindly, or next to nowhere."""
    if told.noise_share > _DROWNED or distance > 2 * within:
        validation.fail(
            api_name,
            "value_fn",
            "have slopes that stand out from noise before they change",
            f"slopes of {math.sqrt(told.power):.2g} that have changed within "
            f"{within:.2g}, told at {distance:.2g} with a noise of {noise:.2g}",
            "Little is left to gain here; or take the mean of several values.",
        )


class _Seen(NamedTuple):
    """What is known before slopes are: d, K, whether differences are forward, the steps
    of the run, f(x) and the noise of a value."""

    dim: int
    num_directions: int
    forward: bool
    num_steps: int | None
    value: float
    noise: float


class _Told(NamedTuple):
    """At a distance, or at several: s², V, and what is in it."""

    power: Any
    variance: Any
    noise_share: Any
    curvature_share: Any


def _rungs(seen: _Seen, pairs: dict[float, np.ndarray]) -> line_probes.Rungs:
    return line_probes.rungs(pairs, seen.dim, seen.value, seen.noise)


def _far(
    api_name: str, value_at: line_probes.ValueAt, seen: _Seen, size: float
) -> dict[float, np.ndarray]:
    """Pairs of values by distance: of the size of the parameters, and where these
    point to."""
    norm = math.sqrt(seen.dim)
    first = range(_NUM_DIRECTIONS)
    pairs = {
        t: line_probes.taken(value_at, t, first) for t in np.multiply(_FAR, size * norm)
    }
    for _ in range(_MAX_ADDED):
        further = _further(_rungs(seen, pairs), min(pairs), max(pairs), norm)
        if further is None:
            break
        pairs[further] = line_probes.taken(value_at, further, first)
    if not _rungs(seen, pairs).seen:
        # A constant, noise alone, or a point from which both ways look the same.
        validation.fail(
            api_name,
            "value_fn",
            "have slopes that stand out from noise",
            f"values near {seen.value:.6g} with a noise of {seen.noise:.2g}, and no "
            f"slopes within a distance of {max(pairs):.3g}",
            "Start where f is not level, or take the mean of several values.",
        )
    return pairs


def _further(
    view: line_probes.Rungs, shortest: float, longest: float, norm: float
) -> float | None:
    """A distance to look at, if what is looked for lies within or beyond the others."""
    if not view.distances.size:
        return shortest / 64  # Nothing is finite there.
    if not view.seen:
        return 16 * longest
    reach = _reaches(view, view.distances) * norm
    if reach[0] < shortest / 2:
        return float(max(reach[0], shortest / 256))
    if reach[-1] > 4 * longest and view.distances[-1] == longest:
        return 4 * longest
    return None


def _reaches(view: line_probes.Rungs, distances: np.ndarray) -> np.ndarray:
    """s / h at distances."""
    power, spread = (view.between(name, distances) for name in ("power", "spread"))
    return np.sqrt(power) / np.maximum(spread, 1e-300)


def _close(
    value_at: line_probes.ValueAt,
    seen: _Seen,
    pairs: dict[float, np.ndarray],
    shortest: float,
) -> dict[float, np.ndarray]:
    """Pairs at a distance at which curvature should be 0.6 % of the square of a slope,
    if that is short and noise is less."""
    view = _rungs(seen, pairs)
    lowest, power, bend = view.distances[0], view.power[0], view.bend[0]
    if not power:
        return {}
    t = 0.16 * math.sqrt(power / bend) if bend else math.inf
    t = max(min(t, lowest / 8), 4.5 * seen.noise / math.sqrt(power), shortest)
    if t > lowest / 2:
        return {}
    return {t: line_probes.taken(value_at, t, range(_NUM_DIRECTIONS))}


def _chosen(
    view: line_probes.Rungs, seen: _Seen, far: float
) -> tuple[float, float, float, float]:
    """The reach, told at `far` or beyond unless slopes change before that; and the
    shortest, the middle and the longest distance that serve."""
    norm = math.sqrt(seen.dim)
    first, last = view.distances[0], view.distances[-1]
    grid = np.geomspace(first / 8, last, 801)
    reaches = np.minimum(_reaches(view, grid), 4 * last / norm)
    beyond = np.flatnonzero(reaches * norm > grid)
    end = int(beyond[-1]) + 1 if beyond.size else 0
    told = _told(view, seen, grid)
    if end == len(grid):
        falls = np.sqrt(told.power) * reaches / (1 + told.variance)
        end = int(np.argmax(np.where(grid < far, 0.0, falls)))
    told = _Told(*(x[: end + 1] for x in told))
    # What slopes say of those at `end`: nothing where they vanish, as on a stair.
    lasting = told.power / told.power[-1]
    merit = np.minimum(lasting, 1 / lasting) / (1 + told.variance)
    best = int(np.argmax(merit))
    poor = np.flatnonzero(merit < _WITHIN * merit[best])
    shortest = float(grid[np.max(poor[poor < best], initial=-1) + 1])
    longest = float(grid[np.min(poor[poor > best], initial=end + 1) - 1])
    shortest = max(shortest, longest / _NARROWEST)
    # What was not looked at is not chosen, be f as smooth there as elsewhere or not.
    distance = max(math.sqrt(shortest * longest), min(float(first), longest))
    return float(reaches[end]), shortest, distance, longest


def _told(view: line_probes.Rungs, seen: _Seen, distances: Any) -> _Told:
    power = np.maximum(view.between("power", distances), 1e-300)
    noise = seen.noise**2 / distances**2 / power
    if seen.forward:
        noise_share = 2 * noise
        curvature_share = distances**2 * view.between("bend", distances) / (4 * power)
    else:
        noise_share, curvature_share = noise / 2, np.zeros_like(noise)
    variance = (seen.dim - 1) / seen.num_directions
    variance = variance * (1 + noise_share + curvature_share)
    told = _Told(power, variance, noise_share, curvature_share)
    return told if np.ndim(distances) else _Told(*(float(x) for x in told))
