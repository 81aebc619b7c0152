"""One step of a complete optimizer, by updates or in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from radazo import core, validation
from radazo.optimizers.combinators import WithEstimatorState


class InPlace(NamedTuple):
    """An optimizer that updates parameters in place.

    Attributes:
      init: `init(params) -> state`, a `WithEstimatorState`.
      step: `step(value_fn, params, state, **extra) -> (params, state, info)`. Keywords
        go to `value_fn`; `info` is an `EstimateInfo`.
    """

    init: Callable[[core.Params], WithEstimatorState]
    step: Callable[..., tuple[core.Params, WithEstimatorState, core.EstimateInfo]]


def check_optimizer(api_name: str, optimizer: Any) -> None:
    """Check that `optimizer` is a transformation or an `InPlace`."""
    if not isinstance(optimizer, InPlace):
        validation.transformation(api_name, optimizer, complete=True)


def take_step(
    optimizer: optax.GradientTransformation | InPlace,
    value_fn: core.ValueFn | None,
    params: core.Params,
    state: Any,
    *,
    evaluate: core.Evaluate | None = None,
    **extra: Any,
) -> tuple[core.Params, Any]:
    """Return the parameters and the state after a step."""
    if evaluate is not None:
        extra["evaluate"] = evaluate
    if isinstance(optimizer, InPlace):
        return optimizer.step(value_fn, params, state, **extra)[:2]
    if value_fn is not None:
        extra["value_fn"] = value_fn
    update: Any = optimizer.update
    updates, state = update(None, state, params, **extra)
    return core.apply_updates(updates, params), state


class _ReachedError(Exception):
    """Raised to leave a step at its first evaluation."""


def first_evaluation(
    optimizer: Any, params: core.Params, state: Any, **extra: Any
) -> tuple[core.Function, core.Step, core.Queries]:
    """Return (function, step, queries) of the first evaluation, inside any wrapper."""

    def leave(*inputs: Any) -> Any:
        raise _ReachedError(*inputs)

    value_fn = extra.pop("value_fn", None)
    try:
        take_step(optimizer, value_fn, params, state, evaluate=leave, **extra)
    except _ReachedError as reached:
        return reached.args
    hint = "`radazo.with_estimator(estimator, optimizer, key)`."
    hint = f"Use `radazo.radazo(...)`, or {hint}"
    got = repr(optimizer)[:200]
    return validation.fail("ask", "optimizer", "have an estimator in it", got, hint)
