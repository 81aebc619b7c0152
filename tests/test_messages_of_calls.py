"""What is said about a mistake that shows with the parameters, function or run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained

import radazo

SPHERE = "sphere_estimator"
ONES = jnp.ones(3)
NAN = float("nan")


def init(params, **options):
    return lambda: radazo.sphere_estimator(**options).init(params)


def of(value_fn, *, has_aux=False, key=0, **options):
    estimator = radazo.sphere_estimator(**options)
    run = radazo.value_and_grad(value_fn, estimator, has_aux=has_aux)
    return lambda: run(key, ONES)


def update(*params, **extra):
    tried = radazo.radazo(0.1, key=0)
    return lambda: tried.update(None, tried.init(ONES), *params, **extra)


def minimize(value_fn=jnp.sum, params=ONES, num_steps=3, optimizer=None, **options):
    optimizer = radazo.radazo(0.1, key=0) if optimizer is None else optimizer
    return lambda: radazo.minimize(value_fn, params, optimizer, num_steps, **options)


def sample(key=0, *law, num_directions=1):
    return lambda: radazo.directions.sample_directions(
        key, ONES, *law, num_directions=num_directions
    )


def case(kind, call, api_name, rule, got, hint):
    return Mistake(call, kind, api_name, rule, got, hint)


V, T = ValueError, TypeError
VALUE, PARAMS, MASK = f"{SPHERE}(value_fn", f"{SPHERE}(params", f"{SPHERE}(mask"
AUX = "If it returns (value, aux), say `has_aux=True`"
PAIR = "return a pair (value, aux), since `has_aux=True`"
LIKE = "be a pytree of bools like `params` or a prefix of it"
BOX = "be numbers or have the structure and the shapes of `params`"
INF = "Either may be a number or a pytree like `params`; use inf for no bound."
ORDER, NO_NAN = (
    "have lower ≤ upper everywhere",
    "Give them as (lower, upper), without NaN.",
)
TAKE = (
    "Take `radazo.radazo(...)`, or `radazo.with_estimator(estimator, optimizer, key)`."
)
MAKE = "Make it by `jax.tree.map(lambda p: ..., params)`."
REAL = "return a real number"
LEAF = "have a floating-point leaf to perturb"
CONVERT = "Integers, bools, keys and Python numbers pass through; convert what is to"
CALL = "call `optimizer.update(None, state, params, value_fn=f)`."
K = "orthogonal_estimator(num_directions"
MOST = "be at most the number of perturbed elements, 3"
FEWER = "There are no more orthogonal directions than dimensions."
KEY = "be a key or an integer seed"
SEED = "Pass `jax.random.key(seed)` or the seed itself."
STATE = "be a state of `optimizer` for these `params`"
GIVE = "Give the `state` of a result with the same optimizer, or None."
PARTS = {"a": ONES, "b": ONES}

VALUES = {
    "a vector": case(
        V, of(lambda x: x), VALUE, "return a scalar", "shape (3,).", "`terms=True`."
    ),
    "nothing": case(T, of(lambda x: None), VALUE, REAL, "a NoneType None.", AUX),
    "a string": case(T, of(lambda x: "low"), VALUE, REAL, "a str 'low'.", AUX),
    "a dict": case(T, of(lambda x: {"loss": 1.0}), VALUE, REAL, "a dict", AUX),
    "a pair unasked": case(
        T, of(lambda x: (x[0], {"a": x})), VALUE, REAL, "a tuple", AUX
    ),
    "a complex number": case(
        T, of(lambda x: jax.lax.complex(x[0], x[1])), VALUE, REAL, "", AUX
    ),
    "a key": case(T, of(lambda x: jax.random.key(1)), VALUE, REAL, "", AUX),
    "no pair": case(
        T, of(jnp.sum, has_aux=True), VALUE, PAIR, "a ", "Return the pair or leave"
    ),
    "three": case(
        T,
        of(lambda x: (x[0], 1, 2), has_aux=True),
        VALUE,
        PAIR,
        "a tuple.",
        "Return the pair or leave `has_aux` out.",
    ),
    "no key to estimate": case(
        T, of(jnp.sum, key=None), f"{SPHERE}(key", KEY, "", SEED
    ),
}
PARAMETERS = {
    "integers alone": case(
        V, init({"a": jnp.arange(3)}), PARAMS, LEAF, "none.", CONVERT
    ),
    "a Python number": case(V, init(3.0), PARAMS, LEAF, "none.", CONVERT),
    "nothing chosen": case(
        V, init(ONES, mask=False), PARAMS, LEAF, "none where the mask is True.", CONVERT
    ),
    "complex numbers": case(
        T,
        init({"a": jnp.ones(3, complex)}),
        PARAMS,
        "have real leaves",
        "complex64 at ['a'].",
        "Hold the real and the imaginary part as two leaves.",
    ),
    "a name": case(
        T,
        init({"a": ONES, "name": "relu"}),
        PARAMS,
        "have arrays for leaves",
        "a str at ['name'].",
        "`equinox.partition(model, equinox.is_inexact_array)`.",
    ),
    "a function": case(
        T,
        init([ONES, np.tanh]),
        PARAMS,
        "have arrays for leaves",
        "a ufunc at [1].",
        "`equinox.partition(model, equinox.is_inexact_array)`.",
    ),
    "a part of the parameters": case(
        V,
        init({"a": ONES, "b": optax.MaskedNode()}),
        PARAMS,
        "be the whole of the parameters",
        "parameters with an optax.MaskedNode in them.",
        "`with_estimator(estimator, optax.masked(...), key)",
    ),
    "more orthogonal directions than dimensions": case(
        V,
        lambda: radazo.value_and_grad(
            jnp.sum, radazo.orthogonal_estimator(num_directions=4)
        )(0, ONES),
        K,
        MOST,
        "4.",
        FEWER,
    ),
    "a mask of other names": case(
        V, init(PARTS, mask={"c": True}), MASK, LIKE, "", MAKE
    ),
    "a mask too short": case(V, init([ONES, ONES], mask=[True]), MASK, LIKE, "", MAKE),
    "a mask of numbers": case(
        T,
        init(PARTS, mask={"a": 1, "b": 0}),
        MASK,
        "have bools for leaves",
        "1.",
        "It decides what is compiled, so it cannot be traced or be numbers.",
    ),
    "a mask of arrays": case(
        T,
        init(ONES, mask=lambda p: jnp.array(True)),
        MASK,
        "have bools for leaves",
        "Array(True, dtype=bool).",
        "It decides what is compiled, so it cannot be traced or be numbers.",
    ),
    "no directions to look at": case(
        V,
        sample(num_directions=0),
        "sample_directions(num_directions",
        "be at least 1",
        "0.",
        "One direction or more.",
    ),
    "a law by name": case(
        T,
        sample(0, "sphere"),
        "sample_directions(sampler",
        "be a DirectionSampler",
        "'sphere'.",
        "Pass a sampler, e.g. `radazo.directions.sphere`.",
    ),
    "no key to look": case(
        T, sample(None), "sample_directions(key", KEY, "None.", SEED
    ),
}
UPDATES = {
    "no function": case(
        V,
        update(ONES),
        "radazo(...).update(value_fn",
        "be the function to minimize",
        "None.",
        "put the wrapper inside, `with_estimator(estimator, wrapper, key)`",
    ),
    "no parameters": case(
        V,
        update(value_fn=jnp.sum),
        "radazo(...).update(params",
        "be the current parameters",
        "None.",
        CALL,
    ),
    "a number for the function": case(
        T,
        update(ONES, value_fn=3.0),
        "radazo(...).update(value_fn",
        "be a function",
        "3.0.",
        "It takes the parameters first.",
    ),
}


def run(kind, argument, rule, got, hint, call):
    return Mistake(call, kind, f"minimize({argument}", rule, got, hint)


STEPS, BETWEEN = "It is the number of steps.", "steps between two calls of `callback`."
FIRST, ITEMS = "It takes the parameters first.", "It gives what `value_fn` takes beside"
ONE = "have one estimator in it"
PASS = "Pass `radazo.radazo(0.01, key=0)`, say."
SHAPES = "a leaf may be a number."
A_LOW = jnp.zeros(2)
RUNS = {
    "negative": run(
        V, "num_steps", "be at least 0", "-1.", STEPS, minimize(num_steps=-1)
    ),
    "half": run(
        T, "num_steps", "be an integer", "2.5.", STEPS, minimize(num_steps=2.5)
    ),
    "no function": run(T, "value_fn", "be a function", "3.", FIRST, minimize(3)),
    "turned": run(V, "bounds", ORDER, "(1, 0).", NO_NAN, minimize(bounds=(1, 0))),
    "NaN": run(V, "bounds", ORDER, "(nan, 1).", NO_NAN, minimize(bounds=(NAN, 1))),
    "one": run(
        T, "bounds", "be a pair (lower, upper)", "1.0.", INF, minimize(bounds=1.0)
    ),
    "three": run(
        T,
        "bounds",
        "be a pair (lower, upper)",
        "(0, 1, 2).",
        INF,
        minimize(bounds=(0, 1, 2)),
    ),
    "structure": run(V, "bounds", BOX, "{'a'", SHAPES, minimize(bounds=({"a": 0}, 1))),
    "shape": run(
        V, "bounds", BOX, "Array([0., 0.]", SHAPES, minimize(bounds=(A_LOW, 1))
    ),
    "text": run(V, "bounds", BOX, "'low'.", SHAPES, minimize(bounds=("low", 1))),
    "batch": run(
        T,
        "batches",
        "be a function of the step or an iterable",
        "3.",
        ITEMS,
        minimize(batches=3),
    ),
    "batch_alone": run(
        T,
        "batches",
        "be a function of the step or an iterable",
        "{'x': 0}.",
        ITEMS,
        minimize(batches={"x": 0}),
    ),
    "stop": run(
        T, "stop", "be a function", "0.1.", "`stop(value, params)`", minimize(stop=0.1)
    ),
    "stops": run(
        T,
        "stop",
        "return one bool",
        "shape (3,) of type bool.",
        "Take `jnp.all` or `jnp.any` of an array.",
        minimize(stop=lambda value, params: params > 0),
    ),
    "callback": run(
        T,
        "callback",
        "be a function",
        "3.",
        "the `MinimizeResult` so far.",
        minimize(callback=3),
    ),
    "every": run(
        V, "callback_every", "be at least 1", "0.", BETWEEN, minimize(callback_every=0)
    ),
    "progress": run(
        T,
        "progress",
        "be a bool",
        "'yes'.",
        "None shows a bar",
        minimize(progress="yes"),
    ),
    "a maker": run(
        T,
        "optimizer",
        "be a GradientTransformation",
        "<function radazo",
        PASS,
        minimize(optimizer=radazo.radazo),
    ),
    "no estimator": run(
        V,
        "optimizer",
        ONE,
        "one whose state has 0.",
        TAKE,
        minimize(optimizer=optax.sgd(0.1)),
    ),
    "two estimators": run(
        V,
        "optimizer",
        ONE,
        "one whose state has 2.",
        TAKE,
        minimize(optimizer=optax.chain(*[radazo.radazo(0.1, key=0)] * 2)),
    ),
    "no state": run(V, "state", STATE, "one of another", GIVE, minimize(state=3)),
    "another's state": run(
        V,
        "state",
        STATE,
        "one of another structure or other shapes",
        GIVE,
        minimize(state=radazo.radazo(0.1, key=0).init(jnp.ones(4))),
    ),
}
MISTAKES = [*VALUES.items(), *PARAMETERS.items(), *UPDATES.items(), *RUNS.items()]


@pytest.mark.parametrize(
    "mistake", [mistake for _, mistake in MISTAKES], ids=[name for name, _ in MISTAKES]
)
def test_a_mistake_is_explained_when_it_shows(mistake):
    explained(mistake)


def test_a_pair_is_no_array_of_terms():
    """A value and a count would else be added."""
    for terms in (False, True):
        call = of(lambda x: (jnp.sum(x), jnp.int32(7)), terms=terms)
        explained(case(T, call, VALUE, REAL, "a tuple", AUX))
