"""What is said about a wrong argument of a factory: known, and raised, when it is made.

Every message says where, the rule, what came and the way out, in one form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMIZERS, Mistake, explained, raises
from contracts import LAWS

import radazo

SPHERE = "sphere_estimator"
GOOD_START = "10 is a good start."
DISTANCE = "It is the distance moved along a direction, or a schedule of it"
SHARE = "It is the share of the past that a moment keeps at each step."
DIVISION = "It keeps the division from overflowing."
SEED = "Pass `jax.random.key(seed)` or the seed itself."
STEP = "It is the size of a step or a schedule of it; to maximize, negate `value_fn`."
A_CALL = "Pass `radazo.sphere_estimator()`, say: a call, not the function."


def sphere(**options):
    return lambda: radazo.sphere_estimator(**options)


def with_key(key):
    return lambda: radazo.radazo(0.1, key=key)


ESTIMATOR_MISTAKES = {
    "no directions": Mistake(
        sphere(num_directions=0),
        ValueError,
        f"{SPHERE}(num_directions",
        "be at least 1",
        "0.",
        GOOD_START,
    ),
    "half a direction": Mistake(
        sphere(num_directions=2.5),
        TypeError,
        f"{SPHERE}(num_directions",
        "be an integer",
        "2.5.",
        GOOD_START,
    ),
    "a bool for the number of directions": Mistake(
        sphere(num_directions=True),
        TypeError,
        f"{SPHERE}(num_directions",
        "be an integer",
        "True.",
        GOOD_START,
    ),
    "a string for the number of directions": Mistake(
        sphere(num_directions="10"),
        TypeError,
        f"{SPHERE}(num_directions",
        "be an integer",
        "'10'.",
        GOOD_START,
    ),
    "a smoothing schedule that is a list": Mistake(
        sphere(smoothing=[1e-2, 1e-3]),
        TypeError,
        f"{SPHERE}(smoothing",
        "be a number or a schedule",
        "[0.01, 0.001].",
        DISTANCE,
    ),
    "a string for smoothing": Mistake(
        sphere(smoothing="1e-3"),
        TypeError,
        f"{SPHERE}(smoothing",
        "be a number or a schedule",
        "'1e-3'.",
        DISTANCE,
    ),
    "a complex smoothing": Mistake(
        sphere(smoothing=1j),
        TypeError,
        f"{SPHERE}(smoothing",
        "be a number or a schedule",
        "1j.",
        DISTANCE,
    ),
    "a chunk of no directions": Mistake(
        sphere(chunk_size=0),
        ValueError,
        f"{SPHERE}(chunk_size",
        "be at least 1",
        "0.",
        "1 takes one direction after the other, `num_directions` all at once.",
    ),
    "a difference by name": Mistake(
        sphere(difference="central"),
        TypeError,
        f"{SPHERE}(difference",
        "be a Difference",
        "'central'.",
        "Pass `radazo.forward` or `radazo.central`.",
    ),
    "terms that are not a bool": Mistake(
        sphere(terms=1),
        TypeError,
        f"{SPHERE}(terms",
        "be a bool",
        "1.",
        "True says that `value_fn` returns terms whose sum is the objective.",
    ),
    "a sampler by name": Mistake(
        lambda: radazo.finite_difference_estimator("sphere"),
        TypeError,
        "finite_difference_estimator(sampler",
        "be a DirectionSampler",
        "'sphere'.",
        "Pass a sampler, e.g. `radazo.directions.sphere`.",
    ),
    "an estimator for a sampler": Mistake(
        lambda: radazo.finite_difference_estimator(radazo.sphere_estimator()),
        TypeError,
        "finite_difference_estimator(sampler",
        "be a DirectionSampler",
        "Estimator(",
        "Pass a sampler, e.g. `radazo.directions.sphere`.",
    ),
}

RULE_MISTAKES = {
    "a first moment that never forgets": Mistake(
        lambda: radazo.first_moment(1.0),
        ValueError,
        "first_moment(b1",
        "be in [0, 1)",
        "1.0.",
        SHARE,
    ),
    "a string for a decay rate": Mistake(
        lambda: radazo.scale_by_second_moment("0.9"),
        TypeError,
        "scale_by_second_moment(b2",
        "be a number",
        "'0.9'.",
        SHARE,
    ),
    "a decay rate that is NaN": Mistake(
        lambda: radazo.scale_by_radazo(b2=float("nan")),
        ValueError,
        "scale_by_radazo(b2",
        "be in [0, 1)",
        "nan.",
        SHARE,
    ),
    "a negative constant beside the root": Mistake(
        lambda: radazo.scale_by_radazo(eps=-1.0),
        ValueError,
        "scale_by_radazo(eps",
        "be finite and at least 0",
        "-1.0.",
        DIVISION,
    ),
    "a negative constant inside the root": Mistake(
        lambda: radazo.scale_by_zo_adamm(eps_root=-1e-8),
        ValueError,
        "scale_by_zo_adamm(eps_root",
        "be finite and at least 0",
        "-1e-08.",
        DIVISION,
    ),
    "amsgrad that is not a bool": Mistake(
        lambda: radazo.scale_by_zo_adamm(amsgrad="yes"),
        TypeError,
        "scale_by_zo_adamm(amsgrad",
        "be a bool",
        "'yes'.",
        "True is the published rule of 2019.",
    ),
    "momentum that never forgets": Mistake(
        lambda: radazo.zo_sgd(0.1, key=0, momentum=1.0),
        ValueError,
        "zo_sgd(momentum",
        "be in [0, 1)",
        "1.0.",
        SHARE,
    ),
    "a negative weight decay": Mistake(
        lambda: radazo.radazo(0.1, key=0, weight_decay=-1),
        ValueError,
        "radazo(weight_decay",
        "be finite and at least 0",
        "-1.",
        "It pulls the parameters towards 0.",
    ),
}

KEY_MISTAKES = {
    "no key": Mistake(
        with_key(None),
        TypeError,
        "radazo(key",
        "be a key or an integer seed",
        "None.",
        SEED,
    ),
    "a seed that is no integer": Mistake(
        with_key(0.5),
        TypeError,
        "radazo(key",
        "be a key or an integer seed",
        "0.5.",
        SEED,
    ),
    "a string for a key": Mistake(
        with_key("0"),
        TypeError,
        "radazo(key",
        "be a key or an integer seed",
        "'0'.",
        SEED,
    ),
    "a bool for a seed": Mistake(
        with_key(True),
        TypeError,
        "radazo(key",
        "be a key or an integer seed",
        "True.",
        SEED,
    ),
    "a float array for a seed": Mistake(
        with_key(jnp.float32(0)),
        TypeError,
        "radazo(key",
        "be a key or an integer seed",
        "a scalar of type float32.",
        SEED,
    ),
    "raw key data": Mistake(
        with_key(jax.random.PRNGKey(3)),
        TypeError,
        "radazo(key",
        "be one key, a scalar",
        "an array of shape (2,) and type uint32.",
        "Wrap raw key data by `jax.random.wrap_key_data(key)`",
    ),
    "several keys": Mistake(
        with_key(jax.random.split(jax.random.key(3))),
        TypeError,
        "radazo(key",
        "be one key, a scalar",
        "an array of shape (2,) and type key<fry>.",
        "for several keys use `jax.vmap`.",
    ),
    "a key of another generator": Mistake(
        with_key(jax.random.key(0, impl="rbg")),
        TypeError,
        "radazo(key",
        "be a threefry2x32 key",
        "a rbg key.",
        'pass `jax.random.key(seed, impl="threefry2x32")`.',
    ),
}

PART_MISTAKES = {
    "the function that makes an estimator": Mistake(
        lambda: radazo.with_estimator(radazo.sphere_estimator, optax.sgd(0.1), 0),
        TypeError,
        "with_estimator(estimator",
        "be an Estimator",
        "<function sphere_estimator",
        A_CALL,
    ),
    "the link's estimator not called": Mistake(
        lambda: radazo.estimate_gradient(radazo.gaussian_estimator, 0),
        TypeError,
        "estimate_gradient(estimator",
        "be an Estimator",
        "<function gaussian_estimator",
        A_CALL,
    ),
    "estimator and optimizer in the wrong order": Mistake(
        lambda: radazo.with_estimator(optax.sgd(0.1), radazo.sphere_estimator(), 0),
        TypeError,
        "with_estimator(estimator",
        "be an Estimator",
        "GradientTransformationExtraArgs(",
        A_CALL,
    ),
    "a number for an optimizer": Mistake(
        lambda: radazo.with_estimator(radazo.sphere_estimator(), 0.1, 0),
        TypeError,
        "with_estimator(optimizer",
        "be an optax.GradientTransformation",
        "0.1.",
        "Pass `optax.sgd(0.1)`, say",
    ),
    "a number for the function": Mistake(
        lambda: radazo.value_and_grad(3, radazo.sphere_estimator()),
        TypeError,
        "value_and_grad(value_fn",
        "be a function",
        "3.",
        "It takes the parameters first.",
    ),
    "a schedule where nothing counts steps": Mistake(
        lambda: radazo.value_and_grad(
            jnp.sum, radazo.sphere_estimator(smoothing=lambda count: 1e-3)
        ),
        ValueError,
        "value_and_grad(estimator",
        "be memoryless",
        "one whose `memoryless` is False",
        "Use `with_estimator` or `estimate_gradient`, which carry its state",
    ),
}

MISTAKES = ESTIMATOR_MISTAKES | RULE_MISTAKES | KEY_MISTAKES | PART_MISTAKES


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_explained_when_it_is_made(mistake):
    explained(mistake)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("smoothing", [0.0, -1, float("nan"), float("inf")])
def test_every_estimator_needs_a_smoothing_above_zero(name, smoothing):
    rule = "be finite and greater than 0"
    explained(
        Mistake(
            lambda: LAWS[name](smoothing=smoothing),
            ValueError,
            f"{name}_estimator(smoothing",
            rule,
            f"{smoothing!r}.",
            DISTANCE,
        )
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rate", [-0.1, float("nan"), "0.1"])
def test_every_optimizer_needs_a_learning_rate_of_zero_or_more(name, rate):
    kind, rule = ValueError, "be finite and at least 0"
    if rate == "0.1":
        kind, rule = TypeError, "be a number or a schedule"
    api_name = f"{name}(learning_rate"
    call = lambda: OPTIMIZERS[name](rate, key=0)
    explained(Mistake(call, kind, api_name, rule, f"{rate!r}.", STEP))


def test_every_optimizer_needs_an_estimator_that_was_called(make_optimizer):
    with raises(TypeError, f"`{make_optimizer.__name__}(estimator=...)`", A_CALL):
        make_optimizer(0.1, radazo.sphere_estimator, key=0)


def test_every_optimizer_needs_a_key(make_optimizer):
    with pytest.raises(TypeError, match="'key'"):
        make_optimizer(0.1)


@pytest.mark.parametrize("one", [np.int64(1), np.int32(1)])
def test_numbers_of_numpy_are_numbers(one):
    radazo.sphere_estimator(num_directions=one, smoothing=np.float32(1e-3))
    radazo.radazo(jnp.float32(0.1), key=one, b1=np.float64(0.5))


def test_no_two_mistakes_get_the_same_message():
    texts = [explained(mistake) for mistake in MISTAKES.values()]
    assert len(set(texts)) == len(texts)
