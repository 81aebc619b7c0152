"""The recipe in `radazo.steps`, followed: an estimator that is new keeps every contract
and can be compared with all others.

The contracts are those of `test_contracts` and `test_contracts_memory`, which find here
a `row` and a `kind` that are the new estimator's."""

from typing import NamedTuple

import contracts
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_contracts
import test_contracts_memory
from conftest import Mistake, explained, half_sum_of_squares
from jax import lax

import radazo
from benchmarks import estimators, estimators_rows, estimators_tasks, records
from radazo import core, validation
from radazo.estimators import build, mean

# 1  The state


class TurnsState(NamedTuple):
    """State of `turns_estimator`."""

    count: jax.Array


def fresh(layout, params):
    del layout, params
    return TurnsState(jnp.zeros((), jnp.int32))


# 2  The step


def next_coordinates(step, state, num_directions):
    """K slopes along the coordinates whose turn it is."""
    dim, dtype, turn = step.layout.dim, step.layout.dtype, step.key[0]
    start, aux = step.evaluate(step.params)

    def look(k):
        index = (state.count % max(dim, 1) * num_directions + k) % max(dim, 1)
        unit = (lax.iota(jnp.int32, dim) == index).astype(dtype)
        terms, _ = step.evaluate(step.moved(step.smoothing * unit, turn))
        slope = jnp.sum(terms - start).astype(dtype) / step.smoothing
        kept = jnp.abs(slope) < jnp.finfo(dtype).max / (2 * num_directions * (dim + 1))
        return jnp.where(kept, slope, jnp.zeros_like(slope)), kept, index

    slopes, kept, indices = lax.map(look, jnp.arange(num_directions, dtype=jnp.int32))
    total = jnp.zeros(dim, dtype).at[indices].add(slopes)
    gradient = dim / mean.num_kept(kept, dtype) * total
    num_values = jnp.asarray(num_directions + 1, jnp.int32)
    info = core.EstimateInfo(slopes, kept, num_values, aux)
    value = jnp.sum(start).astype(dtype)
    return build.Estimated(value, gradient, state, info, turn)


# 3  The name


def turns_estimator(*, num_directions=10, smoothing=5e-3, terms=False, mask=None):
    """Finite differences along K coordinates, then along the next K."""
    api_name, hint = "turns_estimator", "So many coordinates have their turn in a step."
    validation.integer(api_name, "num_directions", num_directions, 1, hint)
    settings = build.Settings(smoothing, terms, mask)
    estimate = lambda step, state: next_coordinates(step, state, num_directions)
    return build.estimator(api_name, settings, fresh, estimate)


# 4  The rows

ROW = contracts.Row(turns_estimator, chunks=False, random=False, memoryless=False)
COMPARED = estimators_rows.Row(
    "turns",
    lambda setting: turns_estimator(
        num_directions=setting.num_directions, smoothing=setting.smoothing
    ),
)


@pytest.fixture
def row():
    return ROW


@pytest.fixture
def kind():
    return ROW


# Every test of these modules that asks for a row or a kind.
for module in (test_contracts, test_contracts_memory):
    found = {name: x for name, x in vars(module).items() if name.startswith("test_")}
    found.pop("test_the_table_has_every_estimator_that_is_public", None)
    globals().update(found)


def test_it_is_compared_with_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(estimators_rows.ROWS, "turns", COMPARED)
    options = ["--tasks", "rosenbrock", "--estimators", "sphere,turns", "--seeds", "1"]
    options += ["--rules", "zo_sgd", "--budget", "0.02", "--output", str(tmp_path)]
    estimators.main(options)
    lines = records.read(tmp_path / "estimators.jsonl")
    assert [x["settings"]["estimator"] for x in lines] == ["sphere", "turns"]
    task = estimators_tasks.TASKS["rosenbrock"]
    for line in lines:
        assert line["numbers"]["value_at_end"][0] < line["numbers"]["value_at_start"][0]
        assert line["numbers"]["counts"][0][-1] >= 0.02 * task.budget


def test_it_is_that_method():
    x = jnp.arange(1.0, 7.0)
    estimator = turns_estimator(num_directions=4, smoothing=1e-3)
    state = estimator.init(x)
    for turns in ([0, 1, 2, 3], [4, 5, 0, 1]):
        _, gradient, state, info = radazo.estimate(
            estimator, 0, half_sum_of_squares, x, state
        )
        np.testing.assert_allclose(info.slopes, x[jnp.array(turns)], rtol=2e-3)
        assert set(np.flatnonzero(gradient)) == set(turns)
    rule = optax.chain(radazo.scale_by_radazo(), optax.scale_by_learning_rate(0.1))
    optimizer = radazo.with_estimator(estimator, rule, key=0)
    result = radazo.minimize(half_sum_of_squares, x, optimizer, 30)
    assert half_sum_of_squares(result.params) < half_sum_of_squares(x) / 2


def test_a_mistake_is_explained():
    explained(
        Mistake(
            lambda: turns_estimator(num_directions=0),
            ValueError,
            "turns_estimator(num_directions",
            "be at least 1",
            "0.",
            "So many coordinates have their turn in a step.",
        )
    )
