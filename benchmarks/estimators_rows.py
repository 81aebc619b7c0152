"""The table of estimators that are compared.

The setting of a task makes all rows move the same distance along a direction: samplers
whose directions have length about √d get the distance over √d. Rows with the option
`times` move that many times as far, because values of past steps need it. The Gaussian
rows with `times` show the effect of the distance alone.

To add an estimator, write a function `_name(setting, **options)` and a line in `ROWS`.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

import radazo


class Batches(NamedTuple):
    """f as a mean over data, of which a batch can be evaluated.

    Attributes:
      value_fn: `value_fn(x, key) -> scalar`, f of the batch that the key draws.
      full_value_fn: `full_value_fn(x) -> scalar`, f of all data.
      share: Share of the data in a batch; a value of a batch costs this share of one.
    """

    value_fn: Callable[[jax.Array, jax.Array], jax.Array]
    full_value_fn: Callable[[jax.Array], jax.Array]
    share: float


class Setting(NamedTuple):
    """The setting that a task gives to all estimators.

    Attributes:
      dim: d, number of parameters.
      num_directions: K.
      smoothing: Distance moved along a direction, for every sampler.
      chunk_size: Directions evaluated at once, for estimators with that argument.
      batches: Of a task that is a mean over data, else None.
    """

    dim: int
    num_directions: int
    smoothing: float
    chunk_size: int
    batches: Batches | None = None

    @property
    def each(self) -> float:
        """Return the change of each parameter if all of them move."""
        return self.smoothing / self.dim**0.5

    @property
    def shared(self) -> dict[str, int]:
        """Return the arguments of all means over directions, but for `smoothing`."""
        return {
            "num_directions": self.num_directions,
            "chunk_size": self.chunk_size,
        }


class Row(NamedTuple):
    """An estimator, and its label.

    Attributes:
      label: Label in tables and figures.
      make: `make(setting, **options) -> radazo.Estimator`.
      options: Further options, which the result line records.
      notes: Remarks for readers of the numbers.
      max_dim: The largest d of its tasks, or None.
      needs_batches: Whether it runs only on tasks with batches.
      is_reference: Whether it uses more than function values; it is shown, but never
        named the best.
    """

    label: str
    make: Callable[..., radazo.Estimator]
    options: Mapping[str, Any] = MappingProxyType({})
    notes: str = ""
    max_dim: int | None = None
    needs_batches: bool = False
    is_reference: bool = False


def _sphere(setting: Setting) -> radazo.Estimator:
    return radazo.sphere_estimator(smoothing=setting.smoothing, **setting.shared)


def _gaussian(setting: Setting, *, times: float = 1.0) -> radazo.Estimator:
    smoothing = times * setting.each
    return radazo.gaussian_estimator(smoothing=smoothing, **setting.shared)


def _rademacher(setting: Setting) -> radazo.Estimator:
    return radazo.rademacher_estimator(smoothing=setting.each, **setting.shared)


def _coordinate(setting: Setting) -> radazo.Estimator:
    return radazo.coordinate_estimator(smoothing=setting.smoothing, **setting.shared)


def _orthogonal(setting: Setting) -> radazo.Estimator:
    return radazo.orthogonal_estimator(smoothing=setting.smoothing, **setting.shared)


def _central(setting: Setting) -> radazo.Estimator:
    return radazo.gaussian_estimator(
        smoothing=setting.each, difference=radazo.central, **setting.shared
    )


def _mezo(setting: Setting) -> radazo.Estimator:
    return radazo.gaussian_estimator(
        smoothing=setting.each, difference=radazo.central, num_directions=1
    )


def _one_point(setting: Setting) -> radazo.Estimator:
    return radazo.sphere_estimator(
        smoothing=setting.smoothing, difference=radazo.one_point, **setting.shared
    )


def _each(setting: Setting) -> radazo.Estimator:
    return radazo.coordinate_estimator(
        smoothing=setting.smoothing,
        num_directions=None,
        chunk_size=setting.chunk_size,
    )


def _exact(setting: Setting) -> radazo.Estimator:
    return radazo.sphere_estimator(difference=radazo.forward_mode, **setting.shared)


def _vote(setting: Setting) -> radazo.Estimator:
    return radazo.majority_vote_estimator(smoothing=setting.smoothing, **setting.shared)


def _guided(setting: Setting, *, prior: str) -> radazo.Estimator:
    return radazo.prior_guided_estimator(
        prior=PRIORS[prior], smoothing=setting.smoothing, **setting.shared
    )


def _history_reuse(
    setting: Setting, *, num_past: int, times: float
) -> radazo.Estimator:
    return radazo.history_reuse_estimator(
        num_past=num_past, smoothing=times * setting.each, **setting.shared
    )


def _history_mean(setting: Setting, *, num_past: int) -> radazo.Estimator:
    return radazo.history_mean_estimator(
        num_past=num_past, smoothing=setting.each, **setting.shared
    )


def _trajectory(setting: Setting, *, num_points: int, times: float) -> radazo.Estimator:
    return radazo.trajectory_estimator(
        num_points=num_points, smoothing=times * setting.smoothing, **setting.shared
    )


def _interpolation(setting: Setting) -> radazo.Estimator:
    return radazo.interpolation_estimator(
        num_directions=setting.num_directions, smoothing=setting.smoothing
    )


def _batches(setting: Setting) -> radazo.Estimator:
    num_values = setting.num_directions + 1
    return on_batches(_sphere(setting), setting.batches, num_values)


def _svrg(setting: Setting, *, share_directions: bool) -> radazo.Estimator:
    estimator = radazo.svrg_estimator(
        _sphere(setting),
        setting.batches.full_value_fn,
        share_directions=share_directions,
    )
    return on_batches(estimator, setting.batches, 2 * (setting.num_directions + 1))


def on_batches(
    estimator: radazo.Estimator, batches: Any, num_values: int
) -> radazo.Estimator:
    """Wrap an estimator so that each step uses another batch.

    Of the function values of a step, `num_values` are of the batch and count as their
    share of the data, rounded up; further ones are of all data.
    """
    saved = num_values - math.ceil(batches.share * num_values)

    def split(step: Any) -> tuple[Any, Any]:
        batch_key, key = jax.random.split(jax.random.wrap_key_data(step.key))
        return batch_key, step._replace(key=jax.random.key_data(key))

    def queries(step: Any, state: Any) -> radazo.estimators.Queries:
        batch_key, own = split(step)
        found = estimator.queries(own, state)
        evaluate = found.fused or found.evaluate

        def of_batch(*_: Any) -> radazo.estimators.Readings:
            return evaluate(
                lambda x: (batches.value_fn(x, batch_key), None), own, found
            )

        return found._replace(fused=of_batch)

    def estimate(step: Any, state: Any, *seen: Any) -> radazo.estimators.Estimate:
        found = estimator.estimate(split(step)[1], state, *seen)
        num_values = found.info.num_values - saved
        return found._replace(info=found.info._replace(num_values=num_values))

    return estimator._replace(queries=queries, estimate=estimate)


def unfit(row: Row, setting: Setting) -> str | None:
    """Return why the row is not run at a setting, or None."""
    if row.max_dim is not None and setting.dim > row.max_dim:
        return f"not beyond d = {row.max_dim:,}"
    if row.needs_batches and setting.batches is None:
        return "no batches"
    return None


PRIORS = {
    "last_estimate": radazo.estimators.last_estimate,
    "last_step": radazo.estimators.last_step,
    "momentum": radazo.estimators.momentum_prior(0.9),
}
_TENTH = (
    "a tenth of the data in each step; where K = 10 a step counts as 2 values of 11"
)
_SNAPSHOTS = (
    "a tenth of the data in each step; where K = 10 a step counts as 3 values of 22, "
    "and every 50 steps 11 are of all data"
)
ROWS = {
    "sphere": Row("sphere", _sphere),
    "gaussian": Row("Gaussian", _gaussian),
    **{
        f"gaussian_{times}": Row(
            f"Gaussian, {times} x",
            _gaussian,
            {"times": float(times)},
            notes=f"{times} times the distance of the others",
        )
        for times in (10, 100)
    },
    "rademacher": Row("Rademacher", _rademacher),
    "coordinate": Row("coordinate", _coordinate),
    "orthogonal": Row("orthogonal", _orthogonal),
    "gaussian_central": Row("Gaussian, central", _central),
    "mezo": Row("MeZO", _mezo, notes="Gaussian, central, K = 1"),
    "one_point": Row("sphere, one-point", _one_point),
    "each": Row("each coordinate", _each, notes="K = d", max_dim=100),
    "vote": Row("majority vote", _vote),
    **{
        f"guided_{name}": Row(
            f"guided by {name.replace('_', ' ')}", _guided, {"prior": name}
        )
        for name in PRIORS
    },
    "history_reuse": Row(
        "ZoAR",
        _history_reuse,
        {"num_past": 5, "times": 10.0},
        notes="values of 5 past steps, ten times the distance of the others",
    ),
    "history_reuse_far": Row(
        "ZoAR, far",
        _history_reuse,
        {"num_past": 5, "times": 100.0},
        notes="values of 5 past steps, a hundred times the distance of the others",
    ),
    "history_mean": Row(
        "ZoHS", _history_mean, {"num_past": 5}, notes="estimates of 5 past steps"
    ),
    "trajectory": Row(
        "ZoRD",
        _trajectory,
        {"num_points": 150, "times": 1.0},
        notes="a Gaussian process on the last 150 points",
        max_dim=1000,
    ),
    "interpolation": Row("ReLIZO", _interpolation),
    "batches": Row("sphere, batches", _batches, notes=_TENTH, needs_batches=True),
    "svrg": Row(
        "SVRG",
        _svrg,
        {"share_directions": False},
        notes=_SNAPSHOTS,
        needs_batches=True,
    ),
    "svrg_shared": Row(
        "SVRG, shared directions",
        _svrg,
        {"share_directions": True},
        notes=_SNAPSHOTS,
        needs_batches=True,
    ),
    "exact": Row(
        "exact slopes",
        _exact,
        notes="forward-mode derivatives along directions of the sphere; a slope counts "
        "as a value",
        is_reference=True,
    ),
}
