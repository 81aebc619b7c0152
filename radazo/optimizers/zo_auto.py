"""Minimize without a learning rate or a smoothing distance.

It is an estimator whose "gradient" is the negated move of the parameters, as `pars`.
Directions are those of `hadamard_estimator`. All else follows from the values:

  learning rate   f along the last step is a parabola; its minimum is the best rate
  smoothing       errors of the values against the curvature along the directions
  noise           from values that are computed again
  restarts        if values no longer fall, a search with a large smoothing distance

The regime is EXACT, BATCHES (f differs from step to step), NOISY (it differs within a
step) or WIDE (a search with a large smoothing distance).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from radazo import core, directions, flat, projections, random, validation
from radazo.estimators import build, hadamard, mean
from radazo.optimizers import combinators, parabola

# Regimes of `ZoAutoState.regime`.
EXACT, BATCHES, NOISY, WIDE = range(4)

_DECAYS = parabola.DECAY, 0.97, 0.97, 0.9  # Of the averages, by regime.
_NOISY_CHANGE, _NOISY_STEPS = 1.1, 10  # Change of a learning rate in a step.
_OUTLIER = 6.0  # Standard deviations of a decrease with noise.
_TOLERANCE = 10.0  # Rounding errors that a value computed again may differ by.
_LOUD = 50.0  # The decrease of a step in units of the noise above which noise is small.
_PRIOR = 3.0  # Weight of what is expected of a step, in units of the noise.
_WEAK = 0.7  # Share of signal below which a larger smoothing is of use.
_RISE = 2.0  # Least rise of f along a direction, in units of the noise.
_WIDE_SMOOTHING = 4.0  # Smoothing in steps of a wide search.
_WINDOW_SWEEPS, _WINDOW_STEPS, _WINDOW_GROWTH = 2, 30, 1.5
_NOISE_DECAY, _LEAST_SIGNAL = 0.8, 0.01
_STALLED, _WIDE_STALLED = 0.01, 0.02  # Gain of a window, relative to those before.
_OF_NORM, _OF_PATH, _JUMP = 0.5, 4.0, 1.0  # First smoothing and jump of a wide search.


class Fit(NamedTuple):
    """Exponential averages over the steps of one regime, all of them 0 at first.

    Attributes:
      num_steps: int32 scalar, steps since the regime began.
      weight: Sum of the weights of `predicted` and `curvature`.
      predicted: Decrease of f by a step, as predicted by the slopes.
      curvature, rate: Second derivative along a step, times its rate, and the rate.
      size: Square of the decreases.
      parabola_weight, parabola_predicted: As above, over steps with a parabola.
      parabola_slope, parabola_bend: First and second differences of a parabola.
      squared_step, squared_rate: Squared length of a step; rate times `predicted`.
      rise, squared_smoothing: Rise of f along directions, squared smoothing.
      spread, squared_change: Variance of the rises, mean square of the changes of f.
    """

    num_steps: jax.Array
    weight: jax.Array
    predicted: jax.Array
    curvature: jax.Array
    rate: jax.Array
    size: jax.Array
    parabola_weight: jax.Array
    parabola_predicted: jax.Array
    parabola_slope: jax.Array
    parabola_bend: jax.Array
    squared_step: jax.Array
    squared_rate: jax.Array
    rise: jax.Array
    squared_smoothing: jax.Array
    spread: jax.Array
    squared_change: jax.Array


class Noise(NamedTuple):
    """Errors of the values.

    Attributes:
      within: Whether a value differs when it is computed again in the same step.
      variance, weight: Exponential average of squared errors, and its weight.
    """

    within: jax.Array
    variance: jax.Array
    weight: jax.Array


class Search(NamedTuple):
    """Progress of the local or wide search that is going on.

    Attributes:
      best, best_value: (dim,) parameters and value of the lowest value so far.
      run_values: int32 scalar, values of the run.
      phase_values: Values of this search.
      num_searches: Wide searches so far.
      first_value, phase_value: First and lowest value of this search.
      window_value: Lowest value at the start of the window.
      window_steps, window_left: Steps of a window, and those left.
      gains: (2,) decreases over the last windows; −inf if there are none.
      squared_path: Sum of squared step lengths of the last local search.
      round_value, round_gain: Lowest value at the end of the last round, and its
        decrease. A round is a wide and a local search, the first a local one alone.
      num_idle: Rounds in a row that gained at most 1 % of the one before.
    """

    best: jax.Array
    best_value: jax.Array
    run_values: jax.Array
    phase_values: jax.Array
    num_searches: jax.Array
    first_value: jax.Array
    phase_value: jax.Array
    window_value: jax.Array
    window_steps: jax.Array
    window_left: jax.Array
    gains: jax.Array
    squared_path: jax.Array
    round_value: jax.Array
    round_gain: jax.Array
    num_idle: jax.Array


class ZoAutoState(NamedTuple):
    """State of the estimator within `zo_auto`.

    Attributes:
      count: int32 scalar, steps so far.
      sweep_key: (2,) uint32, key data of the current sweep of directions.
      regime: int32 scalar: 0 if values are exact, 1 if they differ from step to step
        (batches), 2 if they have noise within a step, 3 in a wide search.
      rate, smoothing: Scalars, learning rate of the last step, in 1 / `unit`, and
        smoothing of the next.
      unit: Scalar; values in this state are in this unit.
      previous: (dim,) parameters before the last step.
      previous_value, squared_norm: Value there, and d / K times the sum of squared
        slopes, of the last step.
      squared_move: Squared length of the last move as it was intended.
      fit, noise, search: Averages, errors and progress.
    """

    count: jax.Array
    sweep_key: jax.Array
    regime: jax.Array
    rate: jax.Array
    smoothing: jax.Array
    unit: jax.Array
    previous: jax.Array
    previous_value: jax.Array
    squared_norm: jax.Array
    squared_move: jax.Array
    fit: Fit
    noise: Noise
    search: Search


class _Seen(NamedTuple):
    """The values of a step in `unit`: NaN where one is not finite.

    Attributes:
      value: f at the parameters.
      repeated, before, middle: f there again, at the previous parameters, and half way
        back, each minus `value`.
      slopes, rises: (K,) slopes, and means of f on both sides minus `value`.
      valid: (K,) bool, whether the slopes are finite.
    """

    value: jax.Array
    repeated: jax.Array
    before: jax.Array
    middle: jax.Array
    slopes: jax.Array
    rises: jax.Array
    valid: jax.Array


_AT_PARAMS, _AGAIN, _PREVIOUS, _MIDDLE, _FIRST_DIRECTION = range(5)


def zo_auto(
    *,
    key: core.Key,
    num_directions: int = core.NUM_DIRECTIONS,
    weight_decay: float = 0.0,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize without a learning rate or a smoothing distance: nothing is to be tuned.

      g = (d / K) · Σₖ slopeₖ · uₖ                    uₖ as in `hadamard_estimator`
      N = (d / K) · Σₖ slopeₖ²                        = ⟨∇f, g⟩
      x ← x − rate · (g + weight_decay · x)

    The regime follows from values that are computed again in steps 0, 1, 2, 4, 8, ...,
    and is in the state:

    0. Values are exact. Slopes are forward differences. The rate is that of
       `scale_by_parabola`, and smoothing = 2 √(e · rate · d / K), with e the rounding
       error of f: errors by rounding and by curvature are then equal.
    1. f differs from step to step, as with batches. A parabola through f at the last
       parameters, half way and at the present ones, all with the batch of this step,
       gives ⟨∇f, step⟩ and the curvature: slopes of one batch would overrate its steps.
    2. f differs within a step. The parabola as in 1; slopes are central differences,
       with a smoothing at which f rises by twice the noise. While a step lowers f by
       more than 50 times the noise, regime 0 is used, with e the noise.
    3. A wide search. If regime 0 gains no more (less than 1 % of the gain of the window
       before, twice in windows of at least two sweeps and 30 steps, each 1.5 times as
       long as the last), it has found a local minimum. The search begins near the
       lowest value with a smoothing of ‖x‖ / 2, or of four times the path length of the
       last descent in every second one, and smoothing falls with the step length. It
       ends if it gains no more or has taken half of all values; then regime 0 follows.

    A step that raises f by more than N · rate, in regimes 1 to 3 and six standard
    deviations of the decreases, or to a value that is not finite, is taken back by
    three quarters, and the rate falls to a quarter.

    Args:
      key: Typed key or integer seed of the run.
      num_directions: K, at least 1; at most the power of two from d on is used.
      weight_decay: Decoupled weight decay per unit of learning rate, at least 0.
      chunk_size, terms, mask, sharding: As in `finite_difference_estimator`.
    Returns:
      As `with_estimator`, with a `ZoAutoState`. Bounds of `minimize` are allowed for.
      The parameters can be far from the best ones during a wide search: take
      `best_params` of the result, or `search.best` of the state.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of range.
    Cost:
      Function values per step: K + 1 in regime 0, K + 3 in 1, 2K + 3 in 2, 2K + 2 in 3,
      and up to 2 in steps 0, 1, 2, 4, ...; one more in regime 0 with noise. Two copies
      of the parameters in the state, in at least float32, and about two during a step.
      In `jax.vmap` up to 2K + 4 values are computed, and those above counted.
    Example:
      >>> scales = 10.0 ** jnp.arange(4)
      >>> value_fn, start = lambda x: jnp.sum(scales * (x - 1) ** 2), jnp.zeros(4)
      >>> result = radazo.minimize(value_fn, start, zo_auto(key=0), target=1e-3)
      >>> print(result.values[0], result.status)
      1111.0 target
    References:
      The rules are radazo's own. Shi et al., On the numerical performance of
      finite-difference-based methods, 2023, for differences at a level of noise.
    """
    api_name = "zo_auto"
    validation.check(api_name, num_directions=num_directions, weight_decay=weight_decay)

    def queries(step: core.Step, state: ZoAutoState) -> core.Queries:
        found = _queries(step, state, num_directions)
        fused = functools.partial(_evaluate, state, chunk_size)
        return found._replace(fused=fused)

    def estimate(
        step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
    ) -> core.Estimate:
        return _estimate(step, state, queries, readings, weight_decay)

    settings = build.Settings(1.0, terms, mask, chunk_size, sharding)
    built = build.estimator(api_name, _init, queries, estimate, settings)
    return combinators.attach_search(api_name, built, key)


def _init(layout: flat.Layout) -> ZoAutoState:
    zero, vector = jnp.zeros((), float), jnp.zeros(layout.dim, layout.dtype)
    infinity, none = jnp.full((), jnp.inf, float), jnp.zeros((), jnp.int32)
    fit = Fit(none, *[zero] * (len(Fit._fields) - 1))
    search = Search(
        best=vector,
        best_value=infinity,
        run_values=none,
        phase_values=none,
        num_searches=none,
        first_value=infinity,
        phase_value=infinity,
        window_value=infinity,
        window_steps=zero,
        window_left=none,
        gains=jnp.full(2, -jnp.inf, float),
        squared_path=zero,
        round_value=infinity,
        round_gain=-infinity,
        num_idle=none,
    )
    return ZoAutoState(
        count=none,
        sweep_key=jnp.zeros(2, jnp.uint32),
        regime=none,
        rate=zero,
        smoothing=zero,
        unit=zero,
        previous=vector,
        previous_value=zero,
        squared_norm=zero,
        squared_move=zero,
        fit=fit,
        noise=Noise(jnp.zeros((), bool), zero, zero),
        search=search,
    )


def _first_smoothing(layout: flat.Layout, norm: jax.Array) -> jax.Array:
    """Return √eps times the larger of ‖x‖ and √d."""
    eps = float(jnp.finfo(layout.dtype).eps)
    return eps**0.5 * jnp.maximum(norm, layout.dim**0.5)


def _norm(x: jax.Array) -> jax.Array:
    """Return ‖x‖ in the type of scalars, by two passes only if squares are extreme."""
    norm = jnp.sqrt(jnp.vdot(x, x))
    limits = jnp.finfo(x.dtype)
    least, most = float(limits.tiny) ** 0.3, float(limits.max) ** 0.45
    is_safe = (norm > least) & (norm < most)
    return lax.cond(is_safe, lambda: norm, lambda: projections.norm(x)).astype(float)


def _is_probe(count: jax.Array) -> jax.Array:
    """Return whether to look for noise: after 0, 1, 2, 4, 8, ... steps."""
    return count & (count - 1) == 0


def _is_needed(state: ZoAutoState, index: Any) -> jax.Array:
    """Return whether a query of the step is evaluated."""
    index = jnp.asarray(index).astype(jnp.int32)
    moved, regime = state.fit.num_steps > 0, state.regime
    again = _is_probe(state.count) | state.noise.within | ~_is_exact(regime)
    of_pair = (index - _FIRST_DIRECTION) & 1
    return jnp.select(
        [index == _AT_PARAMS, index == _AGAIN, index == _PREVIOUS, index == _MIDDLE],
        [
            jnp.ones((), bool),
            _is_probe(state.count),
            moved & again,
            moved & (regime != EXACT),
        ],
        (of_pair == 0) | _is_central(regime),
    )


def _is_central(regime: jax.Array) -> jax.Array:
    return (regime == NOISY) | (regime == WIDE)


def _is_exact(regime: jax.Array) -> jax.Array:
    return (regime == EXACT) | (regime == WIDE)


def _queries(step: core.Step, state: ZoAutoState, num_directions: int) -> core.Queries:
    """Return the queries of a step: at the parameters, along the last step, around."""
    layout, dtype = step.layout, step.layout.dtype
    num_directions = min(num_directions, directions.size_of_basis(layout.dim))
    sweep = hadamard.sweep_of(step, state, num_directions)
    first = state.count == 0
    smoothing = lax.cond(
        first,
        lambda: _first_smoothing(layout, _norm(flat.ravel(layout, step.params))),
        lambda: state.smoothing,
    ).astype(dtype)
    step = step._replace(smoothing=smoothing)
    num = _FIRST_DIRECTION + 2 * num_directions
    opaque = step.key[0]

    def at_previous(index: jax.Array) -> core.Params:
        del index
        return flat.replace(layout, step.params, state.previous, opaque)

    def in_the_middle(index: jax.Array) -> core.Params:
        del index
        x = flat.ravel(layout, step.params)
        half = jnp.asarray(0.5, dtype)
        return flat.perturb(layout, step.params, state.previous - x, half, opaque)

    def along(index: jax.Array) -> core.Params:
        k, side = jnp.divmod(index - jnp.uint32(_FIRST_DIRECTION), jnp.uint32(2))
        drawn = sweep.draw(k)
        distance = jnp.where(side == 0, smoothing, -smoothing) * sweep.scale
        return flat.perturb(layout, step.params, drawn, distance, opaque)

    def point(index: Any) -> core.Params:
        index = jnp.asarray(index).astype(jnp.uint32)
        kind = jnp.clip(index.astype(jnp.int32) - 1, 0, 3)
        at = [lambda index: step.params, at_previous, in_the_middle, along]
        return lax.switch(kind, at, index)

    def read(values: jax.Array, aux: Any) -> core.Readings:
        return _read(step, state, values, aux)

    return core.Queries(
        num=num,
        point=point,
        read=read,
        num_readings=2 * num_directions + 3,
        needed=lambda index: _is_needed(state, index),
        shared=(sweep, smoothing),
    )


def _evaluate(
    state: ZoAutoState,
    chunk_size: int,
    function: core.Function,
    step: core.Step,
    queries: core.Queries,
) -> core.Readings:
    """Evaluate what is needed, in loops over one kind of queries each."""
    base, aux = function(step.params)
    zero = jnp.zeros_like(base)

    def other(index: jax.Array) -> jax.Array:
        def value() -> jax.Array:
            return function(queries.point(index))[0]

        return lax.cond(_is_needed(state, index), value, lambda: zero)

    indices = jnp.arange(1, _FIRST_DIRECTION, dtype=jnp.uint32)
    others = lax.cond(
        jnp.any(jax.vmap(functools.partial(_is_needed, state))(indices)),
        lambda: lax.map(other, indices),
        lambda: jnp.stack([zero] * indices.size),
    )
    sides = _evaluate_sides(state, chunk_size, function, step, queries)
    return queries.read(jnp.concatenate([base[None], others, sides]), aux)


def _evaluate_sides(
    state: ZoAutoState,
    chunk_size: int,
    function: core.Function,
    step: core.Step,
    queries: core.Queries,
) -> jax.Array:
    """Return values on both sides along each direction; 0 on a side without."""
    sweep, smoothing = queries.shared
    layout, num_sides = step.layout, queries.num - _FIRST_DIRECTION
    number = jnp.uint32(num_sides // 2)
    num_needed = jnp.where(_is_central(state.regime), 2 * number, number)
    at_once = min(chunk_size, num_sides // 2)

    def distance(i: jax.Array) -> jax.Array:
        """Return that on the upper side of each direction, then on the lower ones."""
        return jnp.where(i < number, smoothing, -smoothing) * sweep.scale

    def along(drawn: jax.Array, distance: jax.Array, i: jax.Array) -> jax.Array:
        return function(flat.perturb(layout, step.params, drawn, distance, i))[0]

    def place(i: jax.Array) -> jax.Array:
        side, k = jnp.divmod(i, number)
        return 2 * k + side

    def start(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sweep.packed(i % number), distance(i)

    def one(i: jax.Array, carry: tuple[Any, jax.Array]) -> Any:
        (words, distance), values = carry
        drawn = random.unpack_signs(words, layout.dim, layout.dtype)
        values = values.at[place(i)].set(along(drawn, distance, i))
        return start(i + jnp.uint32(1)), values

    def batch(n: jax.Array, values: jax.Array) -> jax.Array:
        i = n * jnp.uint32(at_once) + lax.iota(jnp.uint32, at_once)
        i = jnp.minimum(i, 2 * number - 1)
        drawn = jax.vmap(sweep.draw)(i % number)
        found = jax.vmap(along)(drawn, distance(i), i)
        return values.at[place(i)].set(found)

    kind = jax.eval_shape(function, step.params)[0]
    values, first = jnp.zeros((num_sides, *kind.shape), kind.dtype), jnp.uint32(0)
    if at_once > 1:
        num_batches = (num_needed + jnp.uint32(at_once - 1)) // jnp.uint32(at_once)
        return lax.fori_loop(first, num_batches, batch, values)
    # A carry is stored: see `hadamard`.
    return lax.fori_loop(first, num_needed, one, (start(first), values))[1]


def _read(
    step: core.Step, state: ZoAutoState, values: jax.Array, aux: Any
) -> core.Readings:
    """Return the value, the slopes, the rises and the differences of a step."""

    def minus(left: jax.Array, right: jax.Array) -> jax.Array:
        """Return the difference of values, term by term."""
        return jnp.sum((left - right).reshape(left.shape[0], -1), axis=1)

    base, (again, before, middle) = values[:1], jnp.split(values[1:4], 3)
    sides = values[_FIRST_DIRECTION:]
    up, down, central = sides[0::2], sides[1::2], _is_central(state.regime)
    rise, change = minus(up, base), minus(up, down)
    change = jnp.where(central, change, 2 * rise)
    rises = jnp.where(central, rise - change / 2, 0)
    distance = 2 * step.smoothing.astype(values.dtype)
    extra = [minus(x, base) for x in (again, before, middle)]
    all_of_it = jnp.concatenate([change / distance, rises, *extra])
    num_directions = up.shape[0]
    largest = core.largest(values.dtype, step.layout.dtype)
    largest = largest / (num_directions * max(step.layout.dim, 1))
    valid = jnp.abs(all_of_it) <= largest
    readings = jnp.where(valid, all_of_it, 0)
    return core.Readings(jnp.sum(base), readings, valid, aux)


class _Point(NamedTuple):
    """The parameters of a step and the directions around them.

    Attributes:
      x: (dim,) parameters.
      sweep: Directions.
      smoothing, norm: Scalars, smoothing of the step, and ‖x‖.
    """

    x: jax.Array
    sweep: hadamard.Sweep
    smoothing: jax.Array
    norm: jax.Array


def _seen(
    state: ZoAutoState, smoothing: jax.Array, readings: core.Readings
) -> tuple[jax.Array, _Seen]:
    """Return the unit of values, and the values of the step in it."""
    num_directions = (readings.slopes.size - 3) // 2
    slopes, rises, others = jnp.split(
        readings.slopes.astype(float), [num_directions, 2 * num_directions]
    )
    known = jnp.where(readings.valid[-3:], others, jnp.nan)
    value = readings.value.astype(float)
    largest = jnp.max(jnp.abs(slopes)) * smoothing
    largest = jnp.fmax(largest, jnp.where(jnp.isfinite(value), jnp.abs(value), 0))
    largest = jnp.where(largest > 0, largest, 1)
    unit = jnp.where(state.count == 0, largest, state.unit)
    repeated, before, middle = known
    numbers = value, repeated, before, middle, slopes, rises
    value, *others = (x / unit for x in numbers)
    return unit, _Seen(value, *others, valid=readings.valid[:num_directions])


def _listen(
    step: core.Step, state: ZoAutoState, seen: _Seen
) -> tuple[Noise, jax.Array, jax.Array]:
    """Return errors of the values, the regime that fits, and whether it is new."""
    noise, regime, fit = state.noise, state.regime, state.fit
    eps = float(jnp.finfo(step.layout.dtype).eps)
    scale = jnp.fmax(jnp.abs(seen.value), _finite(state.search.window_value))
    tolerance = _TOLERANCE * eps * jnp.abs(scale)
    is_probe = _is_probe(state.count)
    is_again = _is_needed(state, _PREVIOUS)
    change = seen.value + seen.before - state.previous_value
    within = noise.within | (is_probe & (jnp.abs(seen.repeated) > tolerance))
    sample = jnp.where(is_probe, seen.repeated, change)
    chosen = (within | (regime == BATCHES)) & (is_probe | is_again)
    chosen = chosen & jnp.isfinite(sample)
    variance, weight = parabola.average(
        (noise.variance, noise.weight), (sample**2 / 2, 1.0), _NOISE_DECAY, chosen
    )
    new = Noise(within, variance, weight)
    between = is_again & (jnp.abs(change) > tolerance)
    loud = jnp.where(regime == NOISY, _LOUD, _LOUD / 2) * _deviation(new)
    is_strong = fit.predicted > loud * jnp.maximum(fit.weight, 0.3)
    is_strong = is_strong & (fit.num_steps > 5)
    fitting = jnp.where(_is_exact(regime) & between, BATCHES, regime)
    fitting = jnp.where(within, jnp.where(is_strong, EXACT, NOISY), fitting)
    return new, fitting, (fitting != regime) & ~(within & noise.within)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _deviation(noise: Noise) -> jax.Array:
    """Return the standard deviation of the error of a value."""
    return jnp.sqrt(parabola.ratio(noise.variance, noise.weight))


class _Judged(NamedTuple):
    """What f says of the last step.

    Attributes:
      fit: The averages with this step.
      is_bad: Whether it is to be taken back.
      is_learned: Whether it is in the averages.
      rate: Learning rate that fits, before it is limited.
      ratio: Decrease of f as a share of the predicted one.
      signal: Share of the squared slopes that is not noise, in (0, 1].
    """

    fit: Fit
    is_bad: jax.Array
    is_learned: jax.Array
    rate: jax.Array
    ratio: jax.Array
    signal: jax.Array


def _judge(
    state: ZoAutoState,
    seen: _Seen,
    point: _Point,
    deviation: jax.Array,
    is_new: jax.Array,
) -> _Judged:
    """Fit a parabola to f along the last step."""
    fit, regime, rate = state.fit, state.regime, state.rate
    squared_step = _norm(state.previous - point.x) ** 2
    # Bounds and rounding may have cut the step.
    share = jnp.clip(parabola.ratio(squared_step, state.squared_move), 0, 1)
    predicted = rate * state.squared_norm * share
    is_again = _is_needed(state, _PREVIOUS)
    decrease = jnp.where(is_again, seen.before, state.previous_value - seen.value)
    half, ratio = decrease - seen.middle, parabola.ratio(decrease, predicted)
    with_parabola = regime != EXACT

    margin = jnp.maximum(
        jnp.sqrt(parabola.ratio(fit.size, fit.weight)), 1.5 * deviation
    )
    margin = predicted + jnp.where(with_parabola, _OUTLIER * margin, 0)
    moved = (fit.num_steps > 0) & ~is_new
    # The first step of a search may lead to where f is not finite as well.
    is_lost = (state.count > 0) & ~jnp.isfinite(seen.value) & (squared_step > 0)
    is_bad = (moved & ~(-decrease <= margin)) | is_lost
    is_learned = moved & ~is_bad & (predicted > 0)
    decay = jnp.asarray(_DECAYS)[regime]
    of_step = {
        "weight": 1.0,
        "predicted": predicted,
        "curvature": parabola.curvature(ratio),
        "rate": rate,
        "size": decrease**2,
    }
    of_parabola = {
        "parabola_weight": 1.0,
        "parabola_predicted": predicted,
        "parabola_slope": 4 * half - decrease,
        "parabola_bend": 4 * (2 * half - decrease),
        "squared_step": squared_step,
        "squared_rate": rate * predicted,
    }
    of_pairs = {
        "rise": jnp.mean(seen.rises),
        "squared_smoothing": point.smoothing**2,
        "spread": jnp.var(seen.rises, ddof=int(seen.rises.size > 1)),
        "squared_change": point.smoothing**2 * jnp.mean(seen.slopes**2),
    }
    has_parabola = is_learned & with_parabola & jnp.isfinite(half)
    fit = _averaged(fit, decay, is_learned, of_step)
    fit = _averaged(fit, decay, has_parabola, of_parabola)
    fit = _averaged(fit, decay, _is_central(regime), of_pairs)
    wanted, signal = _fitting_rate(fit, regime, deviation)
    return _Judged(fit, is_bad, is_learned, wanted, ratio, signal)


def _averaged(
    fit: Fit, decay: jax.Array, chosen: jax.Array, samples: dict[str, Any]
) -> Fit:
    """Return `fit` with the samples in its averages where `chosen`."""
    old = {name: getattr(fit, name) for name in samples}
    return fit._replace(**parabola.average(old, samples, decay, chosen))


def _fitting_rate(
    fit: Fit, regime: jax.Array, deviation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the learning rate at the minimum of the parabola, and the signal share."""
    free = parabola.ratio(
        fit.rate, jnp.maximum(fit.curvature, parabola.LEAST_CURVATURE * fit.weight)
    )
    # With noise, what slopes and rises say counts as some further steps.
    along = 2 * parabola.ratio(fit.rise, fit.squared_smoothing)
    prior = jnp.where((regime == NOISY) & (along > 0), _PRIOR * deviation, 0)
    prior = prior * fit.parabola_weight
    expected = jnp.clip(1 - parabola.ratio(fit.spread, fit.squared_change), 0.02, 1)
    slope, predicted = fit.parabola_slope, fit.parabola_predicted
    signal = jnp.clip(
        parabola.ratio(slope + prior * expected, predicted + prior), _LEAST_SIGNAL, 1
    )
    bend = fit.parabola_bend + prior
    curvature = parabola.ratio(bend, fit.squared_step + parabola.ratio(prior, along))
    curvature = curvature * parabola.ratio(fit.squared_step, fit.squared_rate)
    rate = jnp.where(curvature > 0, parabola.ratio(signal, curvature), jnp.inf)
    has_parabola = regime != EXACT
    return (
        jnp.where(has_parabola, rate, free),
        jnp.where(has_parabola, signal, 1),
    )


def _limited(state: ZoAutoState, judged: _Judged, regime: jax.Array) -> jax.Array:
    """Return the learning rate of this step, not much more or less than the last."""
    num_steps, last, ratio = state.fit.num_steps, state.rate, judged.ratio
    wanted = parabola.limited(judged.rate, last, ratio, num_steps)
    slowly = jnp.clip(judged.rate, last / _NOISY_CHANGE, last * _NOISY_CHANGE)
    wanted = jnp.where(~_is_exact(regime) & (num_steps > _NOISY_STEPS), slowly, wanted)
    wanted = jnp.where(judged.is_learned, wanted, last)
    return jnp.where(judged.is_bad, last / parabola.BACK, wanted)


class _Phase(NamedTuple):
    """The search after a step.

    Attributes:
      search: Its progress.
      begins_wide, begins_local: Whether a wide or a local search begins.
      smoothing: First smoothing of a wide search.
    """

    search: Search
    begins_wide: jax.Array
    begins_local: jax.Array
    smoothing: jax.Array


def _proceed(
    state: ZoAutoState,
    seen: _Seen,
    x: jax.Array,
    is_exact: jax.Array,
    num_values: jax.Array,
) -> _Phase:
    """Look whether values still fall, and begin another search if they do not."""
    search, is_wide, value = state.search, state.regime == WIDE, seen.value
    value = jnp.where(jnp.isfinite(value), value, jnp.inf)
    num_per_sweep = directions.size_of_basis(x.size) // seen.slopes.size
    length = float(max(_WINDOW_SWEEPS * num_per_sweep, _WINDOW_STEPS))
    is_first = search.phase_values == 0
    is_lowest = (value <= search.best_value) | ~is_exact
    best = jnp.where(is_lowest, x, search.best)
    best_value = jnp.where(is_lowest, value, search.best_value)
    phase_value = jnp.minimum(search.phase_value, value)
    first_value = jnp.where(is_first, value, search.first_value)
    window_value = jnp.where(is_first, value, search.window_value)
    window_steps = jnp.where(is_first, length, search.window_steps)
    window_left = jnp.where(is_first, int(length), search.window_left) - 1

    ends = (window_left <= 0) & is_exact
    gain = window_value - phase_value
    earlier = search.gains
    is_still = (gain <= _STALLED * earlier[0]) & (earlier[0] <= _STALLED * earlier[1])
    is_still_wide = gain <= _WIDE_STALLED * (first_value - phase_value)
    # A wide search may take as many values as the run before it.
    is_over = is_wide & is_exact & (2 * search.phase_values > search.run_values)
    stalls = (ends & jnp.where(is_wide, is_still_wide, is_still)) | is_over
    window_steps = jnp.where(
        ends & ~is_wide, window_steps * _WINDOW_GROWTH, window_steps
    )
    begins_wide, begins_local = stalls & ~is_wide, stalls & is_wide

    which = search.num_searches
    norm = lax.cond(begins_wide, _norm, lambda x: jnp.zeros((), float), best)
    path = jnp.sqrt(search.squared_path)
    by_norm = (which % 2 == 0) & (norm > 0)
    smoothing = jnp.where(by_norm, _OF_NORM * norm, _OF_PATH * path)
    smoothing = smoothing / jnp.where((which // 2) % 2 == 1, 2, 1)

    infinity = jnp.full_like(value, jnp.inf)
    search = Search(
        best=best,
        best_value=best_value,
        run_values=search.run_values + num_values,
        phase_values=jnp.where(stalls, 0, search.phase_values + num_values),
        num_searches=which + begins_wide.astype(jnp.int32),
        first_value=first_value,
        phase_value=jnp.where(stalls, infinity, phase_value),
        window_value=jnp.where(ends, phase_value, window_value),
        window_steps=window_steps,
        window_left=jnp.where(ends, window_steps.astype(jnp.int32), window_left),
        gains=jnp.where(
            stalls, -infinity, jnp.where(ends, jnp.stack([gain, earlier[0]]), earlier)
        ),
        squared_path=jnp.where(begins_local, 0, search.squared_path),
        **_rounds(search, value, best_value, begins_wide),
    )
    return _Phase(search, begins_wide, begins_local, smoothing)


def _rounds(
    search: Search, value: jax.Array, best_value: jax.Array, ends: jax.Array
) -> dict[str, jax.Array]:
    """Return what `Search` holds of rounds; one ends where a wide search begins."""
    is_first = (search.num_searches == 0) & (search.phase_values == 0)
    begun = jnp.where(is_first, value, search.round_value)
    gain = begun - best_value
    is_idle = gain <= _STALLED * search.round_gain
    num_idle = jnp.where(is_idle, search.num_idle + 1, 0)
    return {
        "round_value": jnp.where(ends, best_value, begun),
        "round_gain": jnp.where(ends, gain, search.round_gain),
        "num_idle": jnp.where(ends, num_idle, search.num_idle),
    }


class _Move(NamedTuple):
    """The move of x and what it follows from.

    Attributes:
      vector: (dim,) the move.
      rate: Learning rate.
      squared_norm: ⟨∇f, g⟩ by the slopes.
      length: ‖rate · g‖.
    """

    vector: jax.Array
    rate: jax.Array
    squared_norm: jax.Array
    length: jax.Array


def _move(
    state: ZoAutoState,
    seen: _Seen,
    judged: _Judged,
    point: _Point,
    regime: jax.Array,
    begins: jax.Array,
    weight_decay: float,
) -> _Move:
    """Return the move along the estimate, or back if the last step was bad."""
    x, dim = point.x, point.x.size
    per_direction = dim / mean.num_valid(seen.valid, seen.slopes.dtype)
    squared_norm = per_direction * jnp.sum(seen.slopes**2)
    weights = (per_direction * seen.slopes).astype(x.dtype)
    gradient = point.sweep.weighted_sum(weights)
    length = _norm(gradient)
    rate = _limited(state, judged, regime)
    rate = jnp.where(begins, parabola.ratio(point.smoothing, length), rate)
    forward = -rate.astype(x.dtype) * (gradient + weight_decay * x)
    forward = jnp.where(squared_norm > 0, forward, 0)
    back = (1 - 1 / parabola.BACK) * (state.previous - x)
    vector = jnp.where(judged.is_bad, back, forward)
    return _Move(vector, rate, squared_norm, rate * length)


def _next_smoothing(
    step: core.Step,
    state: ZoAutoState,
    judged: _Judged,
    seen: _Seen,
    point: _Point,
    move: _Move,
    regime: jax.Array,
    deviation: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the smoothing of the next step, and whether it is still far too small."""
    layout, fit, smoothing = step.layout, judged.fit, point.smoothing
    eps = float(jnp.finfo(layout.dtype).eps)
    error = jnp.maximum(eps * jnp.abs(seen.value), deviation)
    # The mean curvature is K / (d · rate): rounding and bending are then equal.
    per_step = layout.dim / seen.slopes.size
    local = 2 * jnp.sqrt(error * move.rate * per_step)
    local = jnp.clip(local, smoothing / 4, smoothing * 4)
    local = jnp.where(state.fit.num_steps > 0, local, smoothing)

    rise = parabola.ratio(fit.rise, fit.squared_smoothing)
    least = jnp.where(
        rise > 0, jnp.sqrt(parabola.ratio(_RISE * deviation, rise)), jnp.inf
    )
    is_weak = (judged.signal < _WEAK) | (state.fit.num_steps < 3)
    too_small = (regime == NOISY) & (smoothing < least) & is_weak
    of_step = _WIDE_SMOOTHING * move.length / jnp.sqrt(judged.signal)
    of_step = jnp.clip(of_step, smoothing / 1.5, smoothing)
    around = jnp.where(judged.is_bad, smoothing / 2, of_step)
    around = jnp.where(too_small, jnp.minimum(smoothing * 8, least), around)

    central = _is_central(state.regime)
    num_flat = jnp.sum((seen.slopes == 0) & seen.valid, dtype=jnp.int32)
    is_flat = 2 * num_flat > seen.slopes.size
    wider = smoothing * jnp.where(central, 1.5, 4.0)
    following = jnp.where(is_flat, wider, jnp.where(central, around, local))
    coarsest = max(
        float(jnp.finfo(x.dtype).eps)
        for x, on in zip(jax.tree.leaves(step.params), layout.active, strict=True)
        if on
    )
    floor = _TOLERANCE * coarsest * point.norm
    far = too_small & (least > 3 * smoothing)
    # On a constant function it would grow to infinity.
    most = _first_smoothing(layout, point.norm) / eps
    return jnp.clip(following, floor, jnp.maximum(most, floor)), far


def _estimate(
    step: core.Step,
    state: ZoAutoState,
    queries: core.Queries,
    readings: core.Readings,
    weight_decay: float,
) -> core.Estimate:
    """Return the negated move of x as a gradient, and the state after it."""
    before = state
    sweep, smoothing = queries.shared
    x = flat.ravel(step.layout, step.params)
    point = _Point(x, sweep, smoothing.astype(float), _norm(x))
    unit, seen = _seen(state, point.smoothing, readings)
    noise, regime, is_new = _listen(step, state, seen)
    deviation = jnp.where(noise.within, _deviation(noise), 0)
    judged = _judge(state, seen, point, deviation, is_new)
    begins = (state.fit.num_steps == 0) | is_new
    move = _move(state, seen, judged, point, regime, begins, weight_decay)
    smoothing, is_far = _next_smoothing(
        step, state, judged, seen, point, move, regime, deviation
    )
    num_values = queries.num_needed()
    is_exact = _is_exact(regime) & ~noise.within
    phase = _proceed(state, seen, x, is_exact, num_values)
    switches = phase.begins_wide | phase.begins_local

    goes_on = ~judged.is_bad & (move.squared_norm > 0)
    num_steps = judged.fit.num_steps + goes_on.astype(jnp.int32)
    num_steps = jnp.where(is_new, 1, num_steps)
    num_steps = jnp.where(is_far | switches, 0, num_steps)
    state = _after(state, seen, judged, point, move, phase)._replace(
        sweep_key=sweep.key, unit=unit, noise=noise, smoothing=smoothing, regime=regime
    )
    state, vector = _switched(step, state, phase, point, move.vector)
    # Averages of one regime say little in another.
    blank = jax.tree.map(jnp.zeros_like, judged.fit)
    fit = core.select((regime != before.regime) | switches, blank, judged.fit)
    state = state._replace(fit=fit._replace(num_steps=num_steps))
    kept = seen.valid | judged.is_bad | switches
    info = core.EstimateInfo(seen.slopes * unit, kept, num_values, readings.aux)
    return core.Estimate(readings.value, -vector, state, info, step.key[0])


def _after(
    state: ZoAutoState,
    seen: _Seen,
    judged: _Judged,
    point: _Point,
    move: _Move,
    phase: _Phase,
) -> ZoAutoState:
    """Return the state with what the next step compares with."""
    is_bad, squared_move = judged.is_bad, _norm(move.vector) ** 2
    path = jnp.where(state.regime == WIDE, 0, squared_move)
    # A quarter of a bad step remains.
    rest = squared_move / (parabola.BACK - 1) ** 2
    value = jnp.where(jnp.isfinite(seen.value), seen.value, 0)
    return state._replace(
        rate=move.rate,
        previous=jnp.where(is_bad, state.previous, point.x),
        previous_value=jnp.where(is_bad, state.previous_value, value),
        squared_norm=jnp.where(is_bad, state.squared_norm, move.squared_norm),
        squared_move=jnp.where(is_bad, rest, squared_move),
        search=phase.search._replace(squared_path=phase.search.squared_path + path),
    )


def _switched(
    step: core.Step,
    state: ZoAutoState,
    phase: _Phase,
    point: _Point,
    vector: jax.Array,
) -> tuple[ZoAutoState, jax.Array]:
    """Return the state and the move, those of a new search if one begins."""
    x, layout = point.x, step.layout

    def switched() -> jax.Array:
        away = phase.search.best + _jump(step, phase.smoothing) - x
        return jnp.where(phase.begins_wide, away, jnp.zeros_like(vector))

    switches = phase.begins_wide | phase.begins_local
    vector = lax.cond(switches, switched, lambda: vector)
    local = jnp.minimum(_first_smoothing(layout, point.norm), point.smoothing)
    smoothing = jnp.where(phase.begins_wide, phase.smoothing, state.smoothing)
    regime = jnp.where(phase.begins_local, EXACT, state.regime)
    regime = jnp.where(phase.begins_wide, WIDE, regime)
    state = state._replace(
        regime=regime.astype(jnp.int32),
        smoothing=jnp.where(phase.begins_local, local, smoothing),
        rate=jnp.where(switches, 0, state.rate),
        previous=jnp.where(switches, phase.search.best, state.previous),
    )
    return state, vector


def _jump(step: core.Step, smoothing: jax.Array) -> jax.Array:
    """Return a random vector of signs, as long as the smoothing times `_JUMP`."""
    layout = step.layout
    own = random.fold_in(step.key, jnp.uint32(2**32 - 1))
    signs = random.signs(own, layout.dim, layout.dtype)
    length = smoothing * _JUMP / max(layout.dim, 1) ** 0.5
    return signs * length.astype(layout.dtype)
