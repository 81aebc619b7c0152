"""The wrong form raises and names the right one; where it cannot, its price is here.

A test named `..._silently_...` holds what nothing in radazo can see: a wrapper of optax
around a complete optimizer, which does another thing than its user thinks. If one of
them fails, optax has changed, and the documents have to follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import half_sum_of_squares, raises

import radazo

ESTIMATOR = radazo.coordinate_estimator(num_directions=4)
SEED = 5


def start():
    return {"a": jnp.array([3.0, -2.0]), "b": jnp.array([1.0])}


def zeros():
    return jax.tree.map(jnp.zeros_like, start())


def complete():
    return radazo.zo_sgd(0.1, ESTIMATOR, key=SEED)


def one_update(optimizer, params=None, updates=None, **extra):
    params = start() if params is None else params
    extra = {"value_fn": half_sum_of_squares} | extra
    return optimizer.update(updates, optimizer.init(params), params, **extra)


def num_values(state):
    return int(optax.tree.get(state, "num_values"))


# What raises, and names the way out.


@pytest.mark.parametrize(
    "make",
    [
        complete,
        lambda: radazo.with_estimator(ESTIMATOR, optax.sgd(0.1), SEED),
        lambda: radazo.estimate_gradient(ESTIMATOR, SEED),
    ],
    ids=["complete", "with_estimator", "estimate_gradient"],
)
def test_a_missing_value_fn_names_the_wrappers_that_drop_it_and_both_right_forms(make):
    optimizer = make()
    with raises(
        ValueError, "value_fn", "lookahead", "with_estimator", "value_and_grad"
    ):
        optimizer.update(None, optimizer.init(start()), start())


def test_lookahead_around_a_complete_optimizer_names_the_right_form():
    optimizer = optax.chain(optax.lookahead(complete(), 3, 0.5))
    params = optax.LookaheadParams.init_synced(start())
    with raises(ValueError, "value_fn", "optax.lookahead", "put the wrapper inside"):
        one_update(optimizer, params, updates=zeros())


def test_split_real_and_imaginary_around_a_complete_optimizer_names_the_right_form():
    optimizer = optax.chain(optax.contrib.split_real_and_imaginary(complete()))
    with raises(ValueError, "value_fn", "put the wrapper inside"):
        one_update(optimizer, updates=zeros())


def test_sam_around_a_complete_optimizer_names_the_right_form():
    sam = optax.contrib.sam(complete(), optax.sgd(0.1))
    with raises(ValueError, "value_fn", "optax.contrib.sam", "put the wrapper inside"):
        sam.update(zeros(), sam.init(start()), start())


def test_sam_refuses_the_value_fn_that_a_chain_hands_on():
    first = radazo.estimate_gradient(ESTIMATOR, SEED)
    optimizer = optax.chain(first, optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)))
    with pytest.raises(TypeError, match="value_fn"):
        one_update(optimizer)


def test_multi_steps_in_a_chain_around_a_complete_optimizer_names_the_right_form():
    optimizer = optax.chain(optax.MultiSteps(complete(), 2).gradient_transformation())
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(start())
        with raises(ValueError, "value_fn", "put the wrapper inside"):
            optimizer.update(zeros(), state, start(), value_fn=half_sum_of_squares)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: optax.masked(inner, {"a": True, "b": False}),
        lambda inner: optax.partition(
            {"zo": inner, "no": optax.set_to_zero()}, {"a": "zo", "b": "no"}
        ),
    ],
    ids=["masked", "partition"],
)
def test_a_complete_optimizer_on_masked_parameters_names_the_right_form(wrap):
    with raises(ValueError, "MaskedNode", "with_estimator", "mask"):
        wrap(complete()).init(start())


def test_selective_transform_is_no_way_to_freeze_what_a_function_needs():
    optimizer = optax.selective_transform(
        complete(), freeze_mask={"a": False, "b": True}
    )
    with raises(ValueError, "MaskedNode", "with_estimator", "mask"):
        optimizer.init(start())


@pytest.mark.parametrize(
    "rule",
    [optax.polyak_sgd(), optax.contrib.reduce_on_plateau(), optax.contrib.momo()],
    ids=["polyak_sgd", "reduce_on_plateau", "momo"],
)
def test_a_rule_that_needs_the_value_says_so_behind_the_link(rule):
    optimizer = optax.chain(radazo.estimate_gradient(ESTIMATOR, SEED), rule)
    with pytest.raises(TypeError, match="value"):
        one_update(optimizer)


def test_flatten_around_a_complete_optimizer_fails_in_the_function_itself():
    optimizer = optax.flatten(complete())
    with pytest.raises((TypeError, IndexError)):
        one_update(optimizer, updates=zeros(), value_fn=lambda p: jnp.sum(p["a"]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: optax.apply_if_finite(inner, 3),
        lambda inner: optax.MultiSteps(inner, 2),
        lambda inner: optax.conditionally_transform(inner, lambda step: step >= 0),
        optax.contrib.mechanize,
    ],
    ids=["apply_if_finite", "MultiSteps", "conditionally_transform", "mechanize"],
)
def test_wrappers_that_look_at_the_updates_refuse_none(wrap):
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises((TypeError, ValueError, AttributeError)),
    ):
        one_update(wrap(complete()))


# What runs and is another thing than it seems.


@pytest.mark.gate
def test_multi_steps_around_a_complete_optimizer_silently_spends_k_estimates_on_one():
    k, params = 3, start()
    optimizer = optax.MultiSteps(complete(), k)
    state = optimizer.init(params)
    calls = []

    def counted(p):
        jax.debug.callback(lambda: calls.append(1))
        return half_sum_of_squares(p)

    with jax.numpy_dtype_promotion("standard"):
        for _ in range(k):
            updates, state = optimizer.update(zeros(), state, params, value_fn=counted)
    jax.effects_barrier()
    one, _ = one_update(complete())
    assert len(calls) == k * 5
    assert num_values(state) == 5
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, one)


def test_apply_if_finite_around_a_complete_optimizer_silently_sees_its_dummy():
    optimizer = optax.apply_if_finite(complete(), 3)
    _, state = one_update(optimizer, updates=zeros(), value_fn=lambda p: jnp.nan)
    assert bool(state.last_finite)
    assert int(optax.tree.get(state, "num_skipped")) == 1


def reached_by(optimizer):
    """The parameters after 100 steps with dummies of zero for updates."""

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                jax.tree.map(jnp.zeros_like, params),
                state,
                params,
                value_fn=half_sum_of_squares,
            )
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=100)[0][0]

    with jax.numpy_dtype_promotion("standard"):
        return run(start())


def test_mechanize_around_a_complete_optimizer_silently_stands_still():
    params = reached_by(optax.contrib.mechanize(complete()))
    assert half_sum_of_squares(params) > 0.99 * half_sum_of_squares(start())


def test_what_stands_before_the_link_is_silently_lost():
    link = radazo.estimate_gradient(ESTIMATOR, SEED)
    decay = optax.add_decayed_weights(100.0)
    lost, _ = one_update(optax.chain(decay, link), updates=zeros())
    alone, _ = one_update(link)
    jax.tree.map(np.testing.assert_array_equal, lost, alone)


def test_masked_behind_the_link_silently_adds_the_raw_estimate_to_the_masked_leaves():
    link = radazo.estimate_gradient(ESTIMATOR, SEED)
    masked = optax.masked(optax.sgd(0.1), {"a": True, "b": False})
    updates, _ = one_update(optax.chain(link, masked))
    raw, _ = one_update(link)
    np.testing.assert_array_equal(updates["b"], raw["b"])


def test_the_mask_of_the_estimator_freezes_what_masked_does_not():
    estimator = radazo.coordinate_estimator(mask={"a": True, "b": False})
    masked = optax.masked(optax.sgd(0.1), {"a": True, "b": False})
    updates, _ = one_update(radazo.with_estimator(estimator, masked, SEED))
    np.testing.assert_array_equal(updates["b"], np.zeros(1))


def test_backtracking_behind_the_link_silently_gets_the_dummy_for_its_gradient():
    search = optax.scale_by_backtracking_linesearch(5)
    first = radazo.estimate_gradient(ESTIMATOR, SEED)
    optimizer = optax.chain(first, optax.scale(-1e3), search)
    around = radazo.with_estimator(
        ESTIMATOR, optax.chain(optax.scale(-1e3), search), SEED
    )
    extra = {"value": half_sum_of_squares(start()), "grad": zeros()}
    _, silent = one_update(optimizer, **extra)
    _, right = one_update(around)
    slope = [optax.tree.get(state, "decrease_error") for state in (silent, right)]
    assert slope[0] != slope[1]


def test_zoom_search_cannot_search_in_a_function_without_derivative():
    def host(params):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(
            lambda p: np.float32(half_sum_of_squares(p)),
            shape,
            params,
            vmap_method="sequential",
        )

    rule = optax.chain(optax.sgd(0.5), optax.scale_by_zoom_linesearch(3))
    with pytest.raises(ValueError, match="JVP"):
        one_update(radazo.with_estimator(ESTIMATOR, rule, SEED), value_fn=host)


def test_a_bare_function_is_no_argument_of_jit():
    optimizer, params = complete(), start()
    with pytest.raises(TypeError, match="value_fn"):
        jax.jit(optimizer.update)(
            None, optimizer.init(params), params, value_fn=half_sum_of_squares
        )


def test_num_directions_must_be_static_under_inject_hyperparams():
    def make(num_directions, key):
        estimator = radazo.sphere_estimator(num_directions=num_directions)
        return radazo.zo_sgd(0.1, estimator, key=key)

    optimizer = optax.inject_hyperparams(make)(num_directions=3, key=SEED)
    with raises(TypeError, "num_directions", "be an integer"):
        optimizer.init(start())


# What works around a complete optimizer too.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: optax.contrib.schedule_free(inner, 0.1, b1=0.5),
        lambda inner: optax.conditionally_transform(inner, lambda step: step >= 0),
        lambda inner: optax.chain(optax.snapshot("norm", optax.tree.norm), inner),
        lambda inner: optax.named_chain(("first", inner), ("second", optax.scale(0.5))),
    ],
    ids=["schedule_free", "conditionally_transform", "snapshot", "named_chain"],
)
def test_around_a_complete_optimizer_with_zeros_for_updates_it_descends(wrap):
    params = reached_by(wrap(complete()))
    assert half_sum_of_squares(params) < 0.1 * half_sum_of_squares(start())
