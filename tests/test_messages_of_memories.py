"""Messages of estimators that remember: past steps, or a snapshot."""

import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo


@pytest.mark.parametrize(
    "make", [radazo.history_reuse_estimator, radazo.history_mean_estimator]
)
def test_a_past_is_refused_where_none_is_carried(make):
    explained(
        Mistake(
            lambda: radazo.value_and_grad(half_sum_of_squares, make()),
            ValueError,
            "value_and_grad(estimator",
            "be memoryless",
            "one whose `memoryless` is False",
            "Use `with_estimator` or `estimate_gradient`, which carry its state",
        )
    )


REUSE, MEAN = "history_reuse_estimator", "history_mean_estimator"
ALONE = "A value is compared with the mean of all: with `num_past=0` take 2 or more."
PRESENT = "0 uses the present step alone."
A_LAW = "Pass a sampler, e.g. `radazo.directions.gaussian`."
V, T = ValueError, TypeError
# (maker, options, kind, argument, rule, what came, way out)
MISTAKES = [
    (REUSE, {"num_past": -1}, V, "num_past", "be at least 0", "-1.", PRESENT),
    (MEAN, {"num_past": 0.5}, T, "num_past", "be an integer", "0.5.", PRESENT),
    (
        REUSE,
        {"num_past": 0, "num_directions": 1},
        V,
        "num_directions",
        "be at least 2",
        "1.",
        ALONE,
    ),
    (REUSE, {"num_directions": 0}, V, "num_directions", "be at least 1", "0.", ALONE),
    (
        MEAN,
        {"num_directions": None},
        T,
        "num_directions",
        "be an integer",
        "None.",
        "One or more.",
    ),
    (MEAN, {"sampler": 1}, T, "sampler", "be a DirectionSampler", "1.", A_LAW),
    (
        REUSE,
        {"sampler": radazo.directions.orthogonal},
        V,
        "sampler",
        "have directions that are independent of each other",
        "DirectionSampler(",
        "The mean of the values is no base value for others",
    ),
    (
        MEAN,
        {"chunk_size": 0},
        V,
        "chunk_size",
        "be at least 1",
        "0.",
        "1 takes one direction after the other",
    ),
]


@pytest.mark.parametrize("row", MISTAKES, ids=[f"{x[0]}-{x[3]}" for x in MISTAKES])
def test_a_mistake_about_the_past_is_explained(row):
    maker, options, kind, argument, rule, got, hint = row
    call = lambda: getattr(radazo, maker)(**options)
    explained(Mistake(call, kind, f"{maker}({argument}", rule, got, hint))


PLAIN = radazo.sphere_estimator()
A_CALL = "Pass `radazo.sphere_estimator()`, say: a call, not the function."
MEMORY = "one whose `memoryless` is False (it uses past steps, or a `smoothing`"
THREE = "Three estimates of a step share it"
WHOLE = "It takes the parameters alone and returns the whole objective."
BETWEEN = "It is the number of steps between two snapshots; 50 is a good start."
# (estimator, full_value_fn, options, kind, argument, rule, what came, way out)
OF_SNAPSHOTS = {
    "no call": (
        radazo.sphere_estimator,
        half_sum_of_squares,
        {},
        T,
        "estimator",
        "be an Estimator",
        "<function",
        A_CALL,
    ),
    "a schedule": (
        radazo.sphere_estimator(smoothing=lambda t: 0.1),
        half_sum_of_squares,
        {},
        V,
        "estimator",
        "be memoryless",
        MEMORY,
        THREE,
    ),
    "a past": (
        radazo.history_mean_estimator(),
        half_sum_of_squares,
        {},
        V,
        "estimator",
        "be memoryless",
        MEMORY,
        THREE,
    ),
    "a value": (
        PLAIN,
        1.0,
        {},
        T,
        "full_value_fn",
        "be a function",
        "1.0.",
        WHOLE,
    ),
    "no steps": (
        PLAIN,
        half_sum_of_squares,
        {"num_inner_steps": 0},
        V,
        "num_inner_steps",
        "be at least 1",
        "0.",
        BETWEEN,
    ),
    "no bool": (
        PLAIN,
        half_sum_of_squares,
        {"share_directions": 1},
        T,
        "share_directions",
        "be a bool",
        "1.",
        "True draws the same directions",
    ),
}


@pytest.mark.parametrize("name", OF_SNAPSHOTS)
def test_a_mistake_around_a_snapshot_is_explained(name):
    estimator, full, options, kind, argument, rule, got, hint = OF_SNAPSHOTS[name]
    call = lambda: radazo.svrg_estimator(estimator, full, **options)
    explained(Mistake(call, kind, f"svrg_estimator({argument}", rule, got, hint))
