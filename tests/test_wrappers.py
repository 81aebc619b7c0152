"""Around every optax wrapper the combinator is the loop written by hand."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import radazo

ESTIMATOR = radazo.coordinate_estimator(num_directions=16)
SEED = 3
NUM_STEPS = 300


def start():
    return {"w": jnp.full((2, 3), 1.5), "b": jnp.array([1.5, 0.0, 2.0])}


def value_fn(params):
    return (jnp.sum(params["w"] ** 2) + jnp.sum((params["b"] - 1) ** 2)) / 2


class Row(NamedTuple):
    """A rule, the keywords that its update takes, and where its parameters are."""

    rule: Any
    takes: tuple[str, ...] = ()
    wrap: Any = lambda params: params
    unwrap: Any = lambda params, state: params


def labels(params):
    return {"w": "matrix", "b": "vector"}


def normalized(rho):
    return optax.chain(optax.contrib.normalize(), optax.sgd(rho))


LINE_SEARCH = ("value", "grad", "value_fn")
ROWS = {
    "MultiSteps": Row(optax.MultiSteps(optax.sgd(0.2), 4)),
    "skip_not_finite": Row(
        optax.MultiSteps(optax.sgd(0.2), 2, should_skip_update_fn=optax.skip_not_finite)
    ),
    "apply_if_finite": Row(optax.apply_if_finite(optax.adam(0.1), 3)),
    "mechanize": Row(optax.contrib.mechanize(optax.sgd(0.1))),
    "masked": Row(
        optax.chain(
            optax.masked(optax.scale(2.0), {"w": True, "b": False}), optax.sgd(0.1)
        )
    ),
    "partition": Row(
        optax.partition({"matrix": optax.sgd(0.2), "vector": optax.adam(0.1)}, labels)
    ),
    "selective_transform": Row(
        optax.chain(
            optax.selective_transform(
                optax.scale(2.0), freeze_mask={"w": False, "b": True}
            ),
            optax.sgd(0.1),
        )
    ),
    "lookahead": Row(
        optax.lookahead(
            optax.adam(0.1), sync_period=3, slow_step_size=0.5, reset_state=True
        ),
        wrap=optax.LookaheadParams.init_synced,
        unwrap=lambda params, state: params.slow,
    ),
    "sam": Row(optax.contrib.sam(optax.sgd(0.1), normalized(0.05), sync_period=2)),
    "schedule_free": Row(
        optax.contrib.schedule_free(optax.sgd(0.2), 0.2, b1=0.9),
        unwrap=lambda params, state: optax.contrib.schedule_free_eval_params(
            state, params
        ),
    ),
    "polyak_sgd": Row(optax.polyak_sgd(max_learning_rate=0.2), ("value",)),
    "backtracking": Row(
        optax.chain(optax.sgd(0.5), optax.scale_by_backtracking_linesearch(8)),
        LINE_SEARCH,
    ),
    "zoom": Row(
        optax.chain(optax.sgd(0.5), optax.scale_by_zoom_linesearch(8)), LINE_SEARCH
    ),
    "reduce_on_plateau": Row(
        optax.chain(optax.sgd(0.2), optax.contrib.reduce_on_plateau(patience=5)),
        ("value",),
    ),
    "momo": Row(optax.contrib.momo(0.2), ("value",)),
    "prodigy": Row(optax.contrib.prodigy(1.0)),
    "dog": Row(optax.contrib.dog(1.0)),
    "dadapt_adamw": Row(optax.contrib.dadapt_adamw(1.0)),
    "cocob": Row(optax.contrib.cocob()),
    "muon": Row(optax.contrib.muon(0.05)),
    "galore": Row(optax.contrib.galore(0.05, rank=2)),
    "flatten": Row(optax.flatten(optax.adam(0.1))),
    "split_real_and_imaginary": Row(
        optax.contrib.split_real_and_imaginary(optax.adam(0.1))
    ),
    "conditionally_transform": Row(
        optax.chain(
            optax.conditionally_transform(optax.scale(2.0), lambda step: step % 2 == 0),
            optax.sgd(0.1),
        )
    ),
    "snapshot": Row(
        optax.chain(optax.snapshot("norm", optax.tree.norm), optax.sgd(0.2))
    ),
    "named_chain": Row(
        optax.named_chain(
            ("clip", optax.clip_by_global_norm(1.0)), ("sgd", optax.sgd(0.2))
        )
    ),
    "inject_hyperparams": Row(optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
}


# One of each kind; the others are transformations like any other.
FAST = ("MultiSteps", "masked", "lookahead", "sam", "polyak_sgd", "backtracking")
PARAMS = [pytest.param(x, marks=() if x in FAST else pytest.mark.gate) for x in ROWS]


@pytest.fixture(params=PARAMS)
def name(request):
    return request.param


def with_estimator(row, params):
    """`NUM_STEPS` steps of the combinator: the parameters, the values and the state."""
    optimizer = radazo.with_estimator(ESTIMATOR, row.rule, SEED)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), state.last_value

    carry = params, optimizer.init(params)
    (params, state), values = jax.lax.scan(step, carry, length=NUM_STEPS)
    return params, state.optimizer, values


def by_hand(row, params):
    """The same steps in a loop that takes a gradient and hands it on."""
    value_and_grad = radazo.value_and_grad(value_fn, ESTIMATOR)

    def step(carry, count):
        params, state = carry
        at = params.fast if isinstance(params, optax.LookaheadParams) else params
        key = jax.random.fold_in(jax.random.key(SEED), count)
        value, gradient = value_and_grad(key, at)
        keywords = {"value": value, "grad": gradient, "value_fn": value_fn}
        taken = {name: keywords[name] for name in row.takes}
        updates, state = row.rule.update(gradient, state, params, **taken)
        return (optax.apply_updates(params, updates), state), value

    carry = params, row.rule.init(params)
    return jax.lax.scan(step, carry, jnp.arange(NUM_STEPS))[1]


@functools.cache
def run_of(name):
    """Both runs of a row, as one program: (parameters, values, values by hand)."""
    row = ROWS[name]

    @jax.jit
    def both(params):
        reached, state, values = with_estimator(row, row.wrap(params))
        return row.unwrap(reached, state), values, by_hand(row, row.wrap(params))

    # optax's bias corrections, its random numbers and others mix types.
    with jax.numpy_dtype_promotion("standard"):
        return both(start())


def test_with_estimator_is_the_loop_written_by_hand(name):
    _, values, expected = run_of(name)
    np.testing.assert_allclose(values[:20], expected[:20], rtol=1e-3)


def test_with_estimator_descends(name):
    params, _, _ = run_of(name)
    assert value_fn(params) < 0.3 * value_fn(start())


@pytest.mark.gate
def test_with_estimator_leaves_a_monitor_its_growing_state():
    rule = optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1))
    optimizer = radazo.with_estimator(ESTIMATOR, rule, SEED)
    params = start()
    _, state = optimizer.update(None, optimizer.init(params), params, value_fn=value_fn)
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    _, gradient = radazo.value_and_grad(value_fn, ESTIMATOR)(key, params)
    expected = optax.tree.norm(gradient)
    np.testing.assert_allclose(optax.tree.get(state, "norm"), expected, rtol=1e-6)


def sophia_run(**extra):
    optimizer = radazo.with_estimator(
        ESTIMATOR, optax.contrib.sophia(0.05, weight_decay=0.0), SEED
    )

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                None, state, params, value_fn=value_fn, **extra
            )
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=100)[0][0]

    with jax.numpy_dtype_promotion("standard"):
        return run(start())


def test_sophia_descends_if_given_the_obj_fn_that_it_differentiates():
    assert value_fn(sophia_run(obj_fn=value_fn)) < 0.3 * value_fn(start())


def test_sophia_asks_for_obj_fn():
    with pytest.raises(ValueError, match="obj_fn must be provided"):
        sophia_run()


LINKS = {
    "MultiSteps": optax.MultiSteps(optax.sgd(0.2), 3),
    "apply_if_finite": optax.apply_if_finite(optax.sgd(0.2), 3),
    "mechanize": optax.contrib.mechanize(optax.sgd(0.2)),
    "flatten": optax.flatten(optax.adam(0.1)),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary(optax.sgd(0.2)),
    "partition": ROWS["partition"].rule,
    "schedule_free": optax.contrib.schedule_free(optax.sgd(0.2), 0.2),
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", LINKS)
def test_the_link_before_a_wrapper_is_the_combinator_around_it(name):
    rule = LINKS[name]
    transform = getattr(rule, "gradient_transformation", lambda: rule)()
    first = radazo.estimate_gradient(ESTIMATOR, SEED)
    optimizers = [
        optax.chain(first, transform),
        radazo.with_estimator(ESTIMATOR, rule, SEED),
    ]

    @jax.jit
    def runs(params):
        def run(optimizer):
            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(
                    None, state, params, value_fn=value_fn
                )
                params = optax.apply_updates(params, updates)
                return (params, state), params

            carry = params, optimizer.init(params)
            return jax.lax.scan(step, carry, length=7)[1]

        return [run(optimizer) for optimizer in optimizers]

    with jax.numpy_dtype_promotion("standard"):
        chained, around = runs(start())
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        chained,
        around,
    )


@pytest.mark.gate
def test_multi_steps_behind_the_link_apply_the_mean_of_k_estimates():
    k, params = 4, start()
    optimizer = optax.chain(
        radazo.estimate_gradient(ESTIMATOR, SEED),
        optax.MultiSteps(optax.sgd(1.0), k).gradient_transformation(),
    )
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(k):
            updates, state = optimizer.update(None, state, params, value_fn=value_fn)
    value_and_grad = radazo.value_and_grad(value_fn, ESTIMATOR)
    keys = [jax.random.fold_in(jax.random.key(SEED), count) for count in range(k)]
    estimates = [value_and_grad(key, params)[1] for key in keys]
    mean = jax.tree.map(lambda *gs: -sum(gs) / k, *estimates)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        updates,
        mean,
    )


def test_sam_in_opaque_mode_descends_with_the_plain_function_as_its_grad_fn():
    value_and_grad = radazo.value_and_grad(value_fn, ESTIMATOR)
    rule = optax.contrib.sam(optax.sgd(0.1), normalized(0.05), opaque_mode=True)

    @jax.jit
    def run(params):
        def step(carry, key):
            params, state = carry
            first, second = jax.random.split(key)
            _, gradient = value_and_grad(first, params)
            updates, state = rule.update(
                gradient,
                state,
                params,
                grad_fn=lambda p, i: value_and_grad(second, p)[1],
            )
            return (optax.apply_updates(params, updates), state), None

        carry = params, rule.init(params)
        keys = jax.random.split(jax.random.key(SEED), 100)
        return jax.lax.scan(step, carry, keys)[0][0]

    with jax.numpy_dtype_promotion("standard"):
        assert value_fn(run(start())) < 0.1 * value_fn(start())
