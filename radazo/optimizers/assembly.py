"""Assembly of complete optimizers from an update rule.

with_estimator(estimator, optax.chain(rule, weight decay, learning rate), key)
"""

from typing import Any

import jax
import optax

from radazo import core, flat, validation
from radazo.estimators import finite_difference
from radazo.optimizers import combinators


def optimizer(
    api_name: str,
    estimator: core.Estimator | None,
    rule: optax.GradientTransformation,
    key: core.Key,
    learning_rate: core.Schedule | float,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the complete optimizer with `rule`; error messages name `api_name`."""
    validation.check(api_name, learning_rate=learning_rate, weight_decay=weight_decay)
    if weight_decay_mask is not None and not callable(weight_decay_mask):
        for choice in jax.tree.leaves(weight_decay_mask):
            validation.check(api_name, weight_decay_mask=choice)
    if estimator is None:
        estimator = finite_difference.sphere_estimator()
    decay = optax.identity()
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        decay = optax.add_decayed_weights(
            weight_decay, lambda params: _decaying(weight_decay_mask, params)
        )
    chain = optax.chain(rule, decay, optax.scale_by_learning_rate(learning_rate))
    return combinators.attached(api_name, estimator, chain, key)


def _decaying(mask: core.Mask, params: core.Params) -> Any:
    """Return a bool per leaf, True for selected floating-point leaves."""
    chosen = jax.tree.broadcast(flat.resolve_mask(mask, params), params)
    return jax.tree.map(lambda on, x: on and core.is_floating(x), chosen, params)


validation.declare(
    validation.non_negative,
    "learning_rate",
    hint="It is the size of a step or a schedule of it; to maximize, negate "
    "`value_fn`.",
    schedule=True,
)
validation.declare(
    validation.non_negative, "weight_decay", hint="It pulls the parameters towards 0."
)
validation.declare(
    validation.instance,
    "weight_decay_mask",
    of=bool,
    hint="It says which leaves decay: bools, or a function of the parameters.",
)
