"""What complete optimizers are assembled of, beside the rule that tells them apart.

with_estimator(estimator, optax.chain(rule, weight decay, learning rate), key)
"""

from typing import Any

import jax
import optax

from radazo import base, checks, estimators, forms, leaves


def optimizer(
    where: str,
    estimator: base.Estimator | None,
    rule: optax.GradientTransformation,
    key: base.Key,
    learning_rate: base.Schedule | float,
    weight_decay: float = 0.0,
    weight_decay_mask: base.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """The complete optimizer made of `rule`, whose messages say `where`."""
    checks.non_negative(
        where,
        "learning_rate",
        learning_rate,
        "It is the size of a step or a schedule of it; to maximize, negate `value_fn`.",
        schedule=True,
    )
    checks.non_negative(
        where, "weight_decay", weight_decay, "It pulls the parameters towards 0."
    )
    if weight_decay_mask is not None and not callable(weight_decay_mask):
        for choice in jax.tree.leaves(weight_decay_mask):
            way_out = (
                "It says which leaves decay: bools, or a function of the parameters."
            )
            checks.instance(where, "weight_decay_mask", choice, bool, way_out)
    if estimator is None:
        estimator = estimators.sphere_estimator()
    decay = optax.identity()
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        decay = optax.masked(
            optax.add_decayed_weights(weight_decay),
            lambda params: _decaying(weight_decay_mask, params),
        )
    chain = optax.chain(rule, decay, optax.scale_by_learning_rate(learning_rate))
    return forms.attached(where, estimator, chain, key)


def _decaying(mask: base.Mask, params: base.Params) -> Any:
    """Which leaves decay: those chosen, if they are floating point."""

    a_function = callable(mask) and not leaves.is_tree_like(mask, params)
    chosen = mask(params) if a_function else mask
    return jax.tree.map(
        lambda choice, part: jax.tree.map(
            lambda leaf: choice and base.is_floating(leaf), part
        ),
        True if chosen is None else chosen,
        params,
    )
