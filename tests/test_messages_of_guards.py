"""Messages of guards against outliers, and of going back."""

import jax.numpy as jnp
import optax
import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo

SPHERE = radazo.sphere_estimator(num_directions=3)
GUARDS = [radazo.skip_outliers, radazo.clip_outliers]


@pytest.fixture(params=GUARDS, ids=[guard.__name__ for guard in GUARDS])
def guard(request):
    return request.param


A_CALL = "Pass `radazo.sphere_estimator()`, say: a call, not the function."
BELOW = "It is the share of recent steps that lie below; 0.5 is the median."
# (options, kind, rule, way out)
OF_OUTLIERS = [
    ({"estimator": radazo.sphere_estimator}, TypeError, "be an Estimator", A_CALL),
    ({"quantile": 1.5}, ValueError, "be in [0, 1]", BELOW),
    ({"quantile": "median"}, TypeError, "be a number", BELOW),
    ({"window": 0}, ValueError, "be at least 1", "It is the number of recent steps"),
    ({"window": 2.0}, TypeError, "be an integer", "It is the number of recent steps"),
    ({"factor": 0}, ValueError, "be finite and greater than 0", "It is how many times"),
]


@pytest.mark.parametrize("row", OF_OUTLIERS, ids=[", ".join(x[0]) for x in OF_OUTLIERS])
def test_a_mistake_about_outliers_is_explained(guard, row):
    options, kind, rule, hint = row
    ((argument, got),) = options.items()
    got = "<function" if callable(got) else f"{got!r}."
    given = {"estimator": SPHERE} | options
    api_name = f"{guard.__name__}({argument}"
    explained(Mistake(lambda: guard(**given), kind, api_name, rule, got, hint))


def test_a_guard_is_refused_where_no_state_is_carried(guard):
    explained(
        Mistake(
            lambda: radazo.value_and_grad(half_sum_of_squares, guard(SPHERE)),
            ValueError,
            "value_and_grad(estimator",
            "be memoryless",
            "one whose `memoryless` is False",
            "Use `with_estimator` or `estimate_gradient`, which carry its state",
        )
    )


SIMPLE = radazo.zo_sgd(0.1, key=0)
COPY = "It is the number of steps from one copy to the next."
IN_A_ROW = "It is the number of bad values in a row with which it goes back."
GOOD = "It is the number of good values that a new one is compared with."
MISTAKES = [
    ({"every": 0}, ValueError, "be at least 1", COPY),
    ({"every": 1.0}, TypeError, "be an integer", COPY),
    ({"patience": 0}, ValueError, "be at least 1", IN_A_ROW),
    ({"window": 1}, ValueError, "be at least 2", GOOD),
    ({"factor": -1.0}, ValueError, "be finite and greater than 0", "It is how many"),
    ({"factor": None}, TypeError, "be a number", "It is how many spreads"),
    (
        {"optimizer": SPHERE},
        TypeError,
        "be an optax.GradientTransformation",
        "Pass `radazo.radazo(0.1, key=0)`, say.",
    ),
]


@pytest.mark.parametrize("row", MISTAKES, ids=[", ".join(x[0]) for x in MISTAKES])
def test_a_mistake_about_going_back_is_explained(row):
    options, kind, rule, hint = row
    ((argument, got),) = options.items()
    got = "Estimator(" if got is SPHERE else f"{got!r}."
    given = {"optimizer": SIMPLE} | options
    call = lambda: radazo.roll_back(**given)
    explained(Mistake(call, kind, f"roll_back({argument}", rule, got, hint))


@pytest.mark.parametrize(
    ("optimizer", "number"),
    [(optax.sgd(0.1), 0), (optax.chain(SIMPLE, SIMPLE), 2)],
    ids=["none", "two"],
)
def test_an_optimizer_without_one_estimator_is_explained(optimizer, number):
    explained(
        Mistake(
            lambda: radazo.roll_back(optimizer).init(jnp.ones(2)),
            ValueError,
            "roll_back(optimizer",
            "have one estimator in it",
            f"one whose state has {number}.",
            "Take `radazo.radazo(...)`, or",
        )
    )


def test_missing_parameters_are_explained():
    optimizer = radazo.roll_back(SIMPLE)
    explained(
        Mistake(
            lambda: optimizer.update(
                None, optimizer.init(jnp.ones(2)), value_fn=half_sum_of_squares
            ),
            ValueError,
            "roll_back(...).update(params",
            "be the current parameters",
            "None.",
            "They are what is kept and set back: call",
        )
    )
