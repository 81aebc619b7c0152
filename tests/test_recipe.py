"""The recipe in `radazo.estimators.build`: a new estimator takes 30 lines and one row.

With these it keeps every contract, works with `ask` and `tell`, in a replay and on a
mesh; one more row compares it with all others. The contracts are those of
`test_contracts` and `test_contracts_memory`, which find here a `row` and a `kind` that
are the new estimator's.
"""

import inspect
import re
from pathlib import Path

import contracts
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_contracts
import test_contracts_memory
import test_seam
from conftest import Mistake, explained, half_sum_of_squares
from jax import lax

import radazo
from benchmarks import estimators, estimators_rows, estimators_tasks, records
from radazo import core, differences, directions, validation
from radazo.estimators import build, mean

# 1  The estimator, one function


def turns_estimator(
    *, num_directions=10, smoothing=5e-3, terms=False, mask=None, sharding=None
):
    """Finite differences along K coordinates, then along the next K."""
    api_name = "turns_estimator"
    validation.check(api_name, num_directions=num_directions)
    options = mean.Options(directions.coordinate, num_directions, differences.forward)

    def indices(step, state):
        dim = max(step.layout.dim, 1)
        start = state.count % dim * num_directions
        return (start + jnp.arange(num_directions, dtype=jnp.int32)) % dim

    def queries(step, state):
        elements = lax.iota(jnp.int32, step.layout.dim)
        turns, dtype = indices(step, state), step.layout.dtype
        draw = lambda k: (elements == turns[k]).astype(dtype)
        return mean.queries(step, options, draw)

    def estimate(step, state, queries, readings):
        gradient = jnp.zeros(step.layout.dim, step.layout.dtype)
        slopes = readings.slopes.astype(gradient.dtype)
        gradient = gradient.at[indices(step, state)].add(slopes)
        gradient *= mean.mean_scale(options, step.layout, readings.valid)
        info = mean.make_info(step.layout, options, readings)
        return core.Estimate(readings.value, gradient, state, info, step.key[0])

    init = lambda layout: mean.EstimatorState(jnp.zeros((), jnp.int32))
    settings = build.Settings(smoothing, terms, mask, sharding=sharding)
    return build.estimator(api_name, init, queries, estimate, settings)


# 2  Its row in `contracts.ESTIMATORS`

ROW = contracts.Row(turns_estimator, chunks=False, random=False, memoryless=False)

# 3  To be compared: its row in `estimators_rows.ROWS`

COMPARED = estimators_rows.Row(
    "turns",
    lambda setting: turns_estimator(
        num_directions=setting.num_directions, smoothing=setting.smoothing
    ),
)


ROWS = [pytest.param(ROW, id="turns", marks=pytest.mark.gate)]


@pytest.fixture(params=ROWS)
def row(request):
    return request.param


@pytest.fixture(params=ROWS)
def kind(request):
    return request.param


# Every test of these modules that asks for a row or a kind.
for module in (test_contracts, test_contracts_memory):
    found = {name: x for name, x in vars(module).items() if name.startswith("test_")}
    found.pop("test_the_table_has_every_estimator_that_is_public", None)
    globals().update(found)


def test_it_takes_thirty_lines_and_one_row():
    assert len(inspect.getsource(turns_estimator).splitlines()) <= 30
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    start, end = (i for i, line in enumerate(lines) if re.match("# [23]  ", line))
    assert len([line for line in lines[start + 1 : end] if line]) == 1


@pytest.mark.gate
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


@pytest.mark.gate
def test_every_evaluator_gives_its_step(monkeypatch, tmp_path):
    monkeypatch.setitem(test_seam.ESTIMATORS, "turns", ROW)
    test_seam.test_a_step_does_not_depend_on_who_evaluates_it("turns", tmp_path)


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
            "More directions give a better estimate",
        )
    )
