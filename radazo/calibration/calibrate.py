"""Choose a smoothing and first learning rates from about fifty function values."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from radazo import core, differences, directions, flat, random, validation
from radazo.calibration import line_probes, trial_step

_MAX_ADDED = 2  # Distances probed beside those of `_FAR`.
_FAR = (0.2, 0.6, 1.8)  # Displacements of an element, in root mean squares of x.
_WITHIN, _NARROWEST = 0.9, 16  # Share of the best; longest over shortest distance.
_MAX_NOISE = 100  # Largest ratio of the mean squares of noise and slopes.
_B1, _EPS_ROOT = 0.9, 1e-8  # Of the optimizers.
_SIGNIFICANT = 3  # Standard deviations.
_MAX_GROWTH = 4  # Of the mean square of slopes, with distance.
# Upper limit, with a chance of 95 %, of a variance, over its estimate from six numbers.
_MARGIN = 4.4


class Calibration(NamedTuple):
    """Suggested parameters and the measurements behind them; print it to read both.

    Attributes:
      smoothing: For the estimator.
      learning_rate, learning_rate_zo_sgd: For `radazo` and `zo_sgd`.
      learning_rate_zo_adamm: For `zo_adamm` and `zo_rmsprop`.
      value: f(x), fitted to seven values close to x.
      noise: Standard deviation of one value, from chance or rounding.
      distance, shortest, longest: Chosen Euclidean distance, and the suitable range.
      slope_spread, curvature: Root mean square of slopes and mean second difference at
        `distance`: ‖∇f‖ / √d and tr(∇²f) / d if f is smooth.
      reach: Displacement of an element after which slopes have changed completely.
      noise_share, curvature_share: Additions to s² by noise and curvature, over s².
      share: Ratio of the learning rates to the greedy ones; not for `zo_sgd`.
      dim, num_directions, num_values: d, K, and the number of function values taken.
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
        """Describe the choice and its reasons."""
        return (
            f"smoothing {self.smoothing:.3g}: points are compared {self.distance:.3g} "
            f"apart ({self.shortest:.2g} to {self.longest:.2g} are suitable);\n"
            f"  relative to the mean square of slopes, noise is {self.noise_share:.2g} "
            f"and curvature {self.curvature_share:.2g}\n"
            f"learning_rate {self.learning_rate:.3g} for radazo, "
            f"{self.learning_rate_zo_adamm:.3g} for zo_adamm and zo_rmsprop, "
            f"{self.learning_rate_zo_sgd:.3g} for zo_sgd:\n"
            f"  slopes of {self.slope_spread:.3g} have changed when elements have "
            f"moved by {self.reach:.3g};\n"
            f"  {self.num_directions} directions in {self.dim} dimensions; the greedy "
            f"rate times {self.share:.2g}, for zo_sgd times 1\n"
            f"from {self.num_values} function values near {self.value:.6g}, with a "
            f"noise of {self.noise:.2g}"
        )


def calibrate(
    key: core.Key,
    value_fn: core.ValueFn,
    params: core.Params,
    *,
    sampler: directions.DirectionSampler = directions.sphere,
    num_directions: int = core.NUM_DIRECTIONS,
    difference: differences.Difference = differences.forward,
    num_steps: int | None = None,
    mask: core.Mask = None,
) -> Calibration:
    """Choose a smoothing and a first learning rate from about fifty function values.

    Measure slopes and second differences along six directions u of the unit sphere, at
    three distances of the size of the parameters and one so short that curvature hardly
    matters; subtract what noise adds; interpolate log-linearly between distances:

      s²(t) = mean ((f(x + t·u) − f(x − t·u)) / 2t)²                      slopes
      hᵢ(t) = (f(x + t·u) + f(x − t·u) − 2 f(x)) / t²         second differences
      v²(t) = (d + 2) / 2 · var hᵢ                      variance of the eigenvalues
      h²(t) = (mean hᵢ)² + v²(t)                       ‖∇²f‖² / d of a quadratic
      reach = s(T) / h(T) at the T from which on T > √d · s / h, at most max t / √d;
              if there is none, where s² / (h (1 + V)) is largest
      V(t)  = (d − 1) / K · (1 + (2σ² / t² + t² mean hᵢ² / 4) / s²)       forward
              (d − 1) / K · (1 + σ² / (2 t² s²))                          central

      merit = min(1, s²(T) / s²(t)) / (1 + V)                              t ≤ T

    V is the variance of an estimate over ‖∇f‖². Distances from which on s² is more than
    4 times that of a shorter one are left out: such slopes are those of other points.
    `smoothing` is the geometric mean of the distances with at least 0.9 of the largest
    merit, except those below 1/16 of the longest of them. It is larger for staircases
    and kinks. Then

      L          |mean hᵢ| + √(4.4 (d − 1)) · v
      zo_sgd     min(reach / (s (1 + V)), 1 / (L + V h))
      n          √((1 + V)² + (2 / (1 − b1))²)
      zo_adamm   share · reach / n · √(1 + V)
      radazo     share · reach / n · √(1 + V (1 − b1) / (1 + b1))
      share      1 / (1 + num_steps / 3n), and ½ if `num_steps` is None

    where L and h are the largest from `smoothing` to √d · reach. No curvature exceeds L
    but where few directions miss it, which 4.4 allows for in most cases. A step of
    `zo_sgd` along the directions probed is tried: as long as f rises, by more than
    noise and t² · root mean square of hᵢ / 2, a quarter of it. All rates are multiplied
    by that share.

    Above, b1 = 0.9, and eps_root = 1e-8 is in the roots. The adaptive optimizers step
    by their rate even if the gradient is small, so a quadratic decreases to
    (share / 2)² of its first value: then calibrate again. The noise σ is estimated from
    a difference table of seven values close to x, and is at least the rounding of their
    type. A new batch in each call of `value_fn` is noise.

    Args:
      key: Typed key or integer seed of the directions.
      value_fn: `value_fn(params) -> scalar`, in JAX or not; compile it with `jax.jit`.
      params: Where to measure: the start of a run, or its current parameters.
      sampler, num_directions, mask: As for the estimator.
      difference: `forward` or `central`.
      num_steps: Number of steps of the run, if known; longer runs get lower rates.
    Returns:
      A `Calibration` of Python numbers; `print` it.
    Raises:
      TypeError: If an argument has the wrong type, or `value_fn` does not return a real
        scalar of Python (not a bool), NumPy or JAX.
      ValueError: If an argument is out of range, `value_fn` is not finite at `params`,
        or its slopes vanish or are lost in noise, as at an optimum.
      It warns if f rises after each of four steps tried, the shortest of them 1/64 of
      the first (the rates are then those of the first), or if the points compared are
      further apart than the norm of the parameters.
    Cost:
      44 to 83 function values, most often 56: 7 for the noise, 36 to 60 far from x, 12
      close to x unless noise forbids it, and 1 to 4 for the step that is tried. One
      direction, one copy of the parameters.
    Example:
      >>> f = jax.jit(lambda x: jnp.sum(jnp.round(10 * jnp.abs(x - 1))))
      >>> found = calibrate(0, f, jnp.zeros(100), num_steps=300)
      >>> estimator = radazo.sphere_estimator(smoothing=found.smoothing)
      >>> optimizer = radazo.radazo(found.learning_rate, estimator, key=0)
      >>> result = radazo.minimize(f, jnp.zeros(100), optimizer, 300)
      >>> print(f(jnp.zeros(100)), f(result.params) < 500)
      1000.0 True
    References:
      Moré and Wild, Estimating computational noise, 2011 (the difference table), and
      Estimating derivatives of noisy simulations, 2012 (the distances). Spall,
      Implementation of the simultaneous perturbation algorithm, 1998 (the rates).
    """
    api_name = "calibrate"
    validation.check(api_name, value_fn=value_fn, sampler=sampler)
    validation.check(api_name, num_directions=num_directions)
    if difference not in (differences.forward, differences.central):
        rule = "be `radazo.forward` or `radazo.central`"
        hint = "For other differences choose the smoothing by hand."
        validation.fail(api_name, "difference", rule, repr(difference)[:200], hint)
    hint = "It is the number of steps of the run; omit it if unknown."
    steps = 1 if num_steps is None else num_steps
    validation.integer(api_name, "num_steps", steps, 1, hint)
    layout, words = flat.layout(api_name, params, mask), random.key_data(api_name, key)
    dim, root_dim = layout.dim, math.sqrt(layout.dim)
    if not dim:
        rule, got = "have elements to move", "none among the leaves"
        hint = "Pass floating-point arrays with elements."
        validation.fail(api_name, "params", rule, got, hint)
    inputs = api_name, value_fn, params, layout, words
    value_at = line_probes.value_along(*inputs)
    size, eps = line_probes.size_and_eps(layout, params)
    spacing = size * root_dim * math.sqrt(eps)
    value, noise = line_probes.value_and_noise(api_name, value_at, spacing)
    setting = _Setting(value_at, dim, num_directions, difference, value, noise)
    far = _probe_far(api_name, setting, size)
    pairs = far | _probe_near(setting, far, 8 * eps * size * root_dim)
    choice = _choose(setting.summarize(pairs), setting, min(far))
    _check_slopes(api_name, setting, choice)
    finite = [t for t in pairs if np.isfinite(pairs[t]).all(axis=1).any()]
    nearest = min(finite, key=lambda t: abs(math.log(t / choice.distance)))
    value_at_sum = line_probes.value_along_all(*inputs)

    def rate_of(num: int) -> float:
        return choice.plain_rate((dim - 1) / num * (1 + choice.noise_share))

    # What noise and the curvature within the distance add to a difference of values.
    allowed = _SIGNIFICANT * math.sqrt(2) * noise
    allowed += choice.distance**2 / 2 * math.sqrt(choice.bend)
    measured = pairs[nearest], nearest, rate_of
    trial = trial_step.try_step(value_at_sum, *measured, value, allowed, dim)
    num_values = sum(x.size for x in pairs.values()) + trial.num_values
    _warn(choice, trial, size * root_dim)
    smoothing = choice.distance / math.sqrt(dim / sampler.factor(dim))
    return Calibration(
        smoothing,
        *_rates(choice, trial.factor, num_steps),
        *(value, noise, choice.distance, choice.shortest, choice.longest),
        *(math.sqrt(choice.power), choice.curvature, choice.reach),
        *(choice.noise_share, choice.curvature_share, _share(choice, num_steps)),
        *(dim, num_directions, line_probes.STENCIL + num_values),
    )


class _Choice(NamedTuple):
    """The choice of a distance, and the statistics there."""

    reach: float
    shortest: float
    distance: float
    longest: float
    power: float  # s²
    variance: float  # V
    noise_share: float
    curvature_share: float
    curvature: float  # Mean second difference.
    bend: float  # Mean square of second differences.
    spread: float  # The largest h from the distance to the reach.
    bound: float  # The largest bound of the curvature in any direction there.

    def plain_rate(self, variance: float) -> float:
        """Return the rate of `zo_sgd` for estimates of this relative variance."""
        greedy = self.reach / (math.sqrt(self.power) * (1 + variance))
        curvature = self.bound + variance * self.spread
        return min(greedy, 1 / curvature) if curvature else greedy


def _share(choice: _Choice, num_steps: int | None) -> float:
    """Return the ratio of the learning rates to the greedy ones."""
    if num_steps is None:
        return 0.5
    return 1 / (1 + num_steps / (3 * _num_greedy(choice)))


def _num_greedy(choice: _Choice) -> float:
    return math.hypot(1 + choice.variance, 2 / (1 - _B1))


def _rates(
    choice: _Choice, factor: float, num_steps: int | None
) -> tuple[float, float, float]:
    """Return the learning rates of `radazo`, `zo_adamm` and `zo_sgd`."""
    rate = factor * _share(choice, num_steps) * choice.reach / _num_greedy(choice)
    averaged = choice.variance * (1 - _B1) / (1 + _B1)
    # Times the root mean square of an element that the optimizer divides by.
    of_radazo, of_zo_adamm = (
        rate * math.sqrt(1 + variance + _EPS_ROOT / choice.power)
        for variance in (averaged, choice.variance)
    )
    return of_radazo, of_zo_adamm, factor * choice.plain_rate(choice.variance)


def _check_slopes(api_name: str, setting: "_Setting", choice: _Choice) -> None:
    """Check that slopes are significant where they have not changed yet."""
    within = choice.reach * math.sqrt(setting.dim)
    if choice.noise_share > _MAX_NOISE or choice.distance > 2 * within:
        rule = "have slopes that are significant before they change"
        got = f"slopes of {math.sqrt(choice.power):.2g} that change within "
        got += f"{within:.2g}, measured at {choice.distance:.2g} with a noise of "
        got += f"{setting.noise:.2g}"
        hint = "The point may be optimal already; otherwise average several values."
        validation.fail(api_name, "value_fn", rule, got, hint)


def _warn(choice: _Choice, trial: trial_step.Trial, norm: float) -> None:
    """Warn of a choice that is not to be relied on."""
    if trial.rises:
        text = (
            "`calibrate` found no step along an estimate that lowers `value_fn`: the "
        )
        text += "learning rates may be too large. Pass a function with less noise, or "
        warnings.warn(text + "start with a tenth of the rates.", stacklevel=3)
    if choice.distance > norm:
        text = f"`calibrate` compares points {choice.distance:.3g} apart, further than "
        text += (
            f"the norm of `params`, {norm:.3g}: closer ones hardly differ, or their "
        )
        text += "slopes are those of stairs or noise. Check `smoothing`."
        warnings.warn(text, stacklevel=3)


class _Setting(NamedTuple):
    value_at: line_probes.ValueAt
    dim: int
    num_directions: int
    difference: differences.Difference
    value: float
    noise: float

    def summarize(self, pairs: line_probes.Pairs) -> line_probes.Probes:
        return line_probes.summarize(pairs, self.dim, self.value, self.noise)


def _probe_far(api_name: str, setting: _Setting, size: float) -> line_probes.Pairs:
    """Take pairs of values at distances of the size of the parameters, or others."""
    value_at, root_dim = setting.value_at, math.sqrt(setting.dim)
    far = np.multiply(_FAR, size * root_dim)
    pairs = {t: line_probes.take(value_at, t) for t in far}
    for _ in range(_MAX_ADDED):
        probes = setting.summarize(pairs)
        distance = _further_distance(probes, min(pairs), max(pairs), root_dim)
        if distance is None:
            break
        pairs[distance] = line_probes.take(value_at, distance)
    if not setting.summarize(pairs).significant:
        got = f"values near {setting.value:.6g} with a noise of {setting.noise:.2g}, "
        got += f"and no slopes within a distance of {max(pairs):.3g}"
        rule = "have slopes that are significant"
        hint = "Start where f is not level, or average several values."
        validation.fail(api_name, "value_fn", rule, got, hint)
    return pairs


def _further_distance(
    probes: line_probes.Probes, shortest: float, longest: float, root_dim: float
) -> float | None:
    """Return a distance to probe below or above the others, if one is needed."""
    if not probes.distances.size:
        return shortest / 64  # No value is finite.
    if not probes.significant:
        return 16 * longest
    reach = _reaches(probes, probes.distances) * root_dim
    if reach[0] < shortest / 2:
        return float(max(reach[0], shortest / 256))
    if reach[-1] > 4 * longest and probes.distances[-1] == longest:
        return 4 * longest
    return None


def _reaches(probes: line_probes.Probes, distances: np.ndarray) -> np.ndarray:
    """Return s / h at distances."""
    power, spread = (probes.at(name, distances) for name in ("power", "spread"))
    return np.sqrt(power) / np.maximum(spread, 1e-300)


def _probe_near(
    setting: _Setting, pairs: line_probes.Pairs, shortest: float
) -> line_probes.Pairs:
    """Take pairs of values, if noise allows it, where curvature adds 0.6 % to s²."""
    probes = setting.summarize(pairs)
    first, power, bend = probes.distances[0], probes.power[0], probes.bend[0]
    if not power:
        return {}
    t = 0.16 * math.sqrt(power / bend) if bend else math.inf
    t = max(min(t, first / 8), 4.5 * setting.noise / math.sqrt(power), shortest)
    return {} if t > first / 2 else {t: line_probes.take(setting.value_at, t)}


def _choose(probes: line_probes.Probes, setting: _Setting, far: float) -> _Choice:
    """Choose the reach, and the shortest, chosen and longest suitable distance."""
    root_dim = math.sqrt(setting.dim)
    first, last = probes.distances[0], probes.distances[-1]
    grid = np.geomspace(first / 8, last, 801)
    power, variance, *_ = _slopes(probes, setting, grid)
    # Slopes that grow with the distance are those of other points.
    grown = np.flatnonzero(power > _MAX_GROWTH * np.minimum.accumulate(power))
    if grown.size:
        grid = grid[: grown[0]]
        power, variance = power[: grown[0]], variance[: grown[0]]
    reaches = np.minimum(_reaches(probes, grid), last / root_dim)
    beyond = np.flatnonzero(reaches * root_dim > grid)
    end = int(beyond[-1]) + 1 if beyond.size else 0
    if end == len(grid):
        decreases = np.sqrt(power) * reaches / (1 + variance)
        end = int(np.argmax(np.where(grid < far, 0.0, decreases)))
    # Steeper slopes than at `end` are those of stairs and kinks.
    ratio = np.minimum(power[end] / power[: end + 1], 1)
    merit = ratio / (1 + variance[: end + 1])
    # Do not extrapolate below the shortest distance probed.
    best = int(np.argmax(np.where(grid[: end + 1] < min(first, grid[end]), 0, merit)))
    poor = np.flatnonzero(merit < _WITHIN * merit[best])
    shortest = float(grid[np.max(poor[poor < best], initial=-1) + 1])
    longest = float(grid[np.min(poor[poor > best], initial=end + 1) - 1])
    shortest = max(shortest, longest / _NARROWEST)
    distance = max(math.sqrt(shortest * longest), min(float(first), longest))
    reach = float(reaches[end])
    spread, bound = _curvatures(probes, setting.dim, distance, reach * root_dim)
    power, variance, *shares = map(float, _slopes(probes, setting, distance))
    curvature = float(np.interp(distance, probes.distances, probes.curvature))
    bend = float(probes.at("bend", np.asarray(distance)))
    statistics = power, variance, shares[0], shares[1], curvature, bend
    return _Choice(reach, shortest, distance, longest, *statistics, spread, bound)


def _curvatures(
    probes: line_probes.Probes, dim: int, distance: float, longest: float
) -> tuple[float, float]:
    """Return h, and a bound of the curvature in any direction, where they are largest.

    With mean m and standard deviation v of the eigenvalues, none exceeds
    m + √(d − 1) · v.
    """
    grid = np.geomspace(distance, max(distance, longest), 101)
    spread = probes.at("spread", grid)
    mean = np.abs(np.interp(grid, probes.distances, probes.curvature))
    deviation = np.sqrt(_MARGIN * np.maximum(spread**2 - mean**2, 0))
    bound = mean + math.sqrt(dim - 1) * deviation
    return float(np.max(spread)), float(np.max(bound))


def _slopes(probes: line_probes.Probes, setting: _Setting, t: Any) -> tuple[Any, ...]:
    """Return s² and V, and the shares of noise and curvature in V."""
    power = np.maximum(probes.at("power", t), 1e-300)
    noise = setting.noise**2 / t**2 / power
    if setting.difference is differences.forward:
        noise_share = 2 * noise
        curvature_share = t**2 * probes.at("bend", t) / (4 * power)
    else:
        noise_share, curvature_share = noise / 2, np.zeros_like(noise)
    variance = (setting.dim - 1) / setting.num_directions
    variance = variance * (1 + noise_share + curvature_share)
    return power, variance, noise_share, curvature_share
