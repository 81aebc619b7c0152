"""One step of a complete optimizer, by updates or in place."""

from typing import Any

import optax

from radazo import core, validation
from radazo.optimizers.in_place import InPlace


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
        params, state, _ = optimizer.step(value_fn, params, state, **extra)
        return params, state
    if value_fn is not None:
        extra["value_fn"] = value_fn
    update: Any = optimizer.update
    updates, state = update(None, state, params, **extra)
    return core.moved(updates, params), state


def check_optimizer(api_name: str, optimizer: Any) -> None:
    """Check that `optimizer` is a transformation or an `InPlace`."""
    if not isinstance(optimizer, InPlace):
        hint = "Pass `radazo.radazo(0.01, key=0)`, or another complete optimizer."
        validation.transformation(api_name, optimizer, hint)
