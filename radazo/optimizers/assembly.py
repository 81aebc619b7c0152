"""What complete optimizers are assembled of, beside the rule that tells them apart.

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
    """The complete optimizer made of `rule`, whose messages say `where`."""
    validation.non_negative(
        api_name,
        "learning_rate",
        learning_rate,
        "It is the size of a step or a schedule of it; to maximize, negate `value_fn`.",
        schedule=True,
    )
    validation.non_negative(
        api_name, "weight_decay", weight_decay, "It pulls the parameters towards 0."
    )
    if weight_decay_mask is not None and not callable(weight_decay_mask):
        for choice in jax.tree.leaves(weight_decay_mask):
            hint = "It says which leaves decay: bools, or a function of the parameters."
            validation.instance(api_name, "weight_decay_mask", choice, bool, hint)
    if estimator is None:
        estimator = finite_difference.sphere_estimator()
    decay = optax.identity()
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        decay = optax.masked(
            optax.add_decayed_weights(weight_decay),
            lambda params: _decaying(weight_decay_mask, params),
        )
    chain = optax.chain(rule, decay, optax.scale_by_learning_rate(learning_rate))
    return combinators.attached(api_name, estimator, chain, key)


def _decaying(mask: core.Mask, params: core.Params) -> Any:
    """Which leaves decay: those chosen, if they are floating point."""

    a_function = callable(mask) and not flat.is_tree_like(mask, params)
    chosen = mask(params) if a_function else mask
    return jax.tree.map(
        lambda choice, part: jax.tree.map(
            lambda leaf: choice and core.is_floating(leaf), part
        ),
        True if chosen is None else chosen,
        params,
    )
