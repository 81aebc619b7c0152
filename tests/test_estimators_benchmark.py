"""The comparison of estimators at toy sizes, and its objectives against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import estimator_of

import radazo
from benchmarks import (
    estimators,
    estimators_figures,
    estimators_report,
    records,
    tuning,
)
from benchmarks import estimators_runs as runs
from benchmarks.estimators_rows import ROWS, Row
from benchmarks.estimators_tasks import TASKS, Problem

pytestmark = pytest.mark.gate


def half_squares(x):
    return jnp.sum(jnp.square(x)) / 2


def toy_problem():
    def start(seed):
        return jax.random.normal(jax.random.key(seed), (6,), jnp.float32), {}

    return Problem(half_squares, start)


TOY = TASKS["rosenbrock"]._replace(
    label="toy",
    build=toy_problem,
    dim=6,
    num_directions=3,
    smoothing=1e-2,
    budget=60,
    rates=dict.fromkeys(runs.RULES, 0.1),
    dtype="float32",
)
CHOICE = ("--estimators", "sphere,mezo", "--rules", "radazo,zo_sgd", "--seeds", "2")


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", TOY)


def command(folder, *more):
    size = ("--tasks", "toy", "--budget", "1", "--output", str(folder))
    estimators.main([*size, *CHOICE, *more])
    return records.read(folder / "estimators.jsonl")


# Runs


def uneven_estimator(num_values):
    """The exact gradient, at num_values(count) function values a step."""

    def estimate(value_fn, params, state):
        value, gradient = jax.value_and_grad(value_fn)(params)
        info = radazo.estimators.EstimateInfo(
            jnp.ones(1), jnp.ones(1, bool), num_values(state.count)
        )
        state = state._replace(count=state.count + jnp.int32(1))
        return value, gradient, state, info

    def init(params):
        return radazo.estimators.EstimatorState(jnp.int32(0))

    return estimator_of(init, estimate)


def one_run(estimator, rule="zo_sgd", rate=0.1, budget=60):
    found = runs.program(toy_problem(), estimator, "float32", budget)
    return found.run(rule, 3, rate)


def test_marks_end_with_the_budget():
    at = runs.marks(5000)
    assert at[-1] == 5000
    assert len(at) == runs.NUM_MARKS
    assert np.all(np.diff(at) > 0)
    assert runs.marks(3).tolist() == [1, 2, 3]


def test_a_run_ends_at_the_budget_whatever_a_step_costs():
    """The k-th step costs k + 1; f falls by 0.9² a step, so f says which step it is."""
    run = one_run(uneven_estimator(lambda count: count + jnp.int32(1)))
    at = np.append(0, runs.marks(60))
    costs = np.cumsum(np.arange(1, 20))  # 1, 3, 6, 10, ...
    steps = np.searchsorted(np.append(0, costs), at)
    np.testing.assert_array_equal(run.counts, np.append(0, costs)[steps])
    assert run.counts[-1] == 66
    np.testing.assert_allclose(run.values, run.values[0] * 0.81**steps, rtol=1e-5)


@jax.jit
def values_of_the_complete_optimizers(x):
    """f after 15 steps of each rule, of four function values."""
    estimator = radazo.sphere_estimator(num_directions=3)

    def of_rule(make):
        key = jax.random.split(jax.random.key(3))[1]
        optimizer = make(0.02, estimator, key=key)

        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=half_squares)
            return optax.apply_updates(x, updates), state

        return half_squares(jax.lax.fori_loop(0, 15, step, (x, optimizer.init(x)))[0])

    return [of_rule(getattr(radazo, rule)) for rule in runs.RULES]


def test_a_run_is_the_complete_optimizer():
    estimator = radazo.sphere_estimator(num_directions=3)
    found = runs.program(toy_problem(), estimator, "float32", 60)
    done = [found.run(rule, 3, 0.02) for rule in runs.RULES]
    expected = values_of_the_complete_optimizers(toy_problem().start(3)[0])
    np.testing.assert_allclose([x.values[-1] for x in done], expected, rtol=1e-4)
    assert [x.counts[-1] for x in done] == [60] * 3


def test_what_takes_no_values_ends_all_the_same():
    run = one_run(uneven_estimator(lambda count: jnp.int32(0)))
    assert run.counts[-1] == 0


def test_a_run_far_above_its_start_is_given_up():
    run = one_run(uneven_estimator(lambda count: jnp.int32(1)), rate=5.0)
    given_up = run.values > 11 * run.values[0]
    assert given_up.any()
    assert len(set(run.values[given_up])) == 1
    assert run.counts[-1] < 60
    assert estimators.scored([run]) == (math.inf, math.inf)


# Tuning


def _tune(score):
    return tuning.tune(score, 1.0, estimators.PARTS)


@pytest.mark.parametrize("target", [-2.9, -1.2, 0.0, 0.6, 3.3])
def test_tuning_finds_the_lowest_to_an_eighth_of_a_power(target):
    tried = _tune(lambda rate: (abs(math.log10(rate) - target), 0.0))
    rate = tuning.best(tried)
    assert abs(math.log10(rate) - target) <= 0.13
    assert min(tried) < rate < max(tried)
    assert len(tried) <= 12


def test_tuning_stops_at_its_reach():
    tried = _tune(lambda rate: (rate, 0.0))
    assert math.isclose(tuning.best(tried), 1e-4)
    assert math.isclose(min(tried), 1e-4)


def test_of_equal_ends_the_faster_rate_is_taken():
    tried = _tune(lambda rate: (0.0, abs(math.log10(rate) - 1)))
    assert math.isclose(tuning.best(tried), 10.0)


# The command


def test_end_to_end_and_again(tmp_path, capsys, monkeypatch, toy):
    lines = command(tmp_path)
    names = [(x["settings"]["estimator"], x["settings"]["rule"]) for x in lines]
    assert names == [(e, r) for e in ("sphere", "mezo") for r in ("radazo", "zo_sgd")]
    for line in lines:
        assert line["command"] == "estimators"
        given, numbers = line["settings"], line["numbers"]
        step = {"sphere": 4, "mezo": 2}[given["estimator"]]
        assert line["seeds"] == [456, 457]
        assert given["tuning_seeds"] == [1000]
        assert given["budget"] == 60
        tried = dict(zip(numbers["rates_tried"], numbers["values_tried"], strict=True))
        assert tried[numbers["rate"]] == min(x for x in tried.values() if x is not None)
        for counts, curve, start, end in zip(
            numbers["counts"],
            numbers["curve"],
            numbers["value_at_start"],
            numbers["value_at_end"],
            strict=True,
        ):
            assert 60 <= counts[-1] < 60 + step
            assert len(counts) == len(curve)
            assert end < start
            np.testing.assert_allclose([curve[0], curve[-1]], [start, end], rtol=1e-3)
    starts = {tuple(x["numbers"]["value_at_start"]) for x in lines}
    assert len(starts) == 1, "all start from the same points"
    assert (tmp_path / "estimators_radazo.png").stat().st_size > 10_000
    assert (tmp_path / "estimators_zo_sgd.png").exists()
    assert not (tmp_path / "estimators_zo_adamm.png").exists()
    capsys.readouterr()
    monkeypatch.setattr(estimators, "measured", None)
    assert command(tmp_path) == lines
    assert "toy: 60 function values, K = 3" in capsys.readouterr().out


def test_an_interrupted_command_goes_on(tmp_path, capsys, monkeypatch, toy):
    numbers_of = estimators.numbers_of

    def interrupted(piece, *args):
        if piece.rule == "zo_sgd":
            raise KeyboardInterrupt
        return numbers_of(piece, *args)

    monkeypatch.setattr(estimators, "numbers_of", interrupted)
    only = ("--estimators", "rademacher")
    (first,) = command(tmp_path, *only)
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert "Rademacher" in printed
    monkeypatch.setattr(estimators, "numbers_of", numbers_of)
    lines = command(tmp_path, *only)
    assert lines[0] == first
    assert [x["settings"]["rule"] for x in lines] == ["radazo", "zo_sgd"]


def test_what_cannot_run_is_shown_as_such(tmp_path, capsys, monkeypatch, toy):
    small = Row("small", ROWS["sphere"].make, max_dim=5)
    monkeypatch.setitem(ROWS, "small", small)
    lines = command(tmp_path, "--estimators", "small")
    assert [x["numbers"]["failed"] for x in lines] == ["not beyond d = 5"] * 2
    assert "not beyond d = 5" in capsys.readouterr().out
    assert "| not beyond d = 5 |" in estimators_report.markdown(lines)
    lines = command(tmp_path, "--estimators", "batches")
    assert [x["numbers"]["failed"] for x in lines[2:]] == ["no batches"] * 2


def test_a_task_whose_library_is_absent_is_skipped(tmp_path, capsys, monkeypatch, toy):
    def build():
        raise ImportError("No module named 'gymnax'")

    monkeypatch.setitem(TASKS, "toy", TOY._replace(build=build))
    assert command(tmp_path) == []
    printed = capsys.readouterr().out
    assert "toy is skipped: No module named 'gymnax'" in printed
    assert "No piece was finished." in printed


def test_options_are_checked(capsys):
    for options, message in (
        (("--tasks", "sphere"), "'sphere' is none of rosenbrock"),
        (("--estimators", "newton"), "'newton' is none of sphere"),
        (("--rules", "meazo"), "'meazo' is none of radazo"),
        (("--seed", "1000"), "must be below 1000; others are for tuning"),
        (("--budget", "0"), "--budget above 0"),
    ):
        with pytest.raises(SystemExit):
            estimators.main(list(options))
        assert message in capsys.readouterr().err


def test_full_sets_the_defaults_and_what_is_given_stands():
    args = estimators.arguments(["--full", "--seeds", "2"])
    assert args.tasks == list(TASKS)
    assert args.budget == 1
    assert estimators.seeds_of("attack", args) == [456, 457]
    assert len(estimators.tuning_seeds_of("attack", args)) == 6
    assert len(estimators.seeds_of("attack", estimators.arguments(["--full"]))) == 20


# The report


def line_of(task, estimator, rule, curves, counts=(0, 10, 20, 30)):
    return {
        "command": "estimators",
        "seeds": [1, 2],
        "settings": {
            "task": task,
            "estimator": estimator,
            "rule": rule,
            "budget": 30,
            "num_directions": 2,
            "smoothing": 0.1,
            "dtype": "float32",
        },
        "numbers": {
            "rate": 0.1,
            "at_edge": estimator == "gaussian",
            "value_at_start": [curve[0] for curve in curves],
            "value_at_end": [curve[-1] for curve in curves],
            "counts": [list(counts)] * len(curves),
            "curve": curves,
        },
    }


PLAIN = [[8.0, 6.0, 4.0, 2.0], [8.0, 6.0, 4.0, 2.0]]
FAST = [[8.0, 4.0, 2.0, 1.0], [8.0, 2.0, 1.0, 1.0]]
SLOW = [[8.0, 7.0, 6.0, 5.0], [8.0, 7.0, 6.0, 4.0]]
NEVER = [[8.0, 9.0, 9.0, None], [8.0, 9.0, 9.0, 9.0]]


def test_values_taken_until_a_level():
    counts, curve = np.array([0, 10, 30]), np.array([8.0, 4.0, 6.0])
    assert estimators_report.taken(counts, curve, 8.0) == 0
    # Before the first point there may be no step.
    assert estimators_report.taken(counts, curve, 5.0) == 10
    assert estimators_report.taken(counts, curve, 4.0) == 10
    assert estimators_report.taken(counts, curve, 3.9) == math.inf


def test_factors_of_lines_made_by_hand():
    plain, fast, slow, never = (
        line_of("levy", "sphere", "radazo", curves)
        for curves in (PLAIN, FAST, SLOW, NEVER)
    )
    factors = estimators_report.factors
    np.testing.assert_allclose(factors(plain, plain), 1)
    np.testing.assert_allclose(factors(fast, plain), [30 / 20, 30 / 10])
    np.testing.assert_allclose(factors(slow, plain), [15 / 30, 20 / 30])
    np.testing.assert_allclose(factors(plain, slow), [30 / 15, 30 / 20])
    np.testing.assert_allclose(factors(never, plain), 0)
    np.testing.assert_allclose(factors(plain, never), np.inf)


def all_lines():
    found = []
    for task in ("levy", "logistic"):
        found += [
            line_of(task, "sphere", "radazo", PLAIN),
            line_of(task, "sphere", "zo_sgd", FAST if task == "levy" else SLOW),
            line_of(task, "mezo", "zo_sgd", FAST),
            line_of(task, "gaussian", "radazo", NEVER),
        ]
    broken = line_of("levy", "coordinate", "radazo", PLAIN)
    return [*found, broken | {"numbers": {"failed": "not beyond d = 7"}}]


def test_the_report_names_the_best_combination():
    text = estimators_report.markdown(all_lines())
    # 1.5 and 3 times as fast on both tasks; on Levy tuned ZO-SGD is the same.
    assert "Best over all tasks: **MeZO + zo_sgd**, 2.25 times as fast" in text
    assert "ahead of both references on 1 of 2 tasks, with whole intervals on 1" in text
    assert "| MeZO | zo_sgd | 0.1 | 1 (1 – 1) | 2.25 (1.50 – 3.00) |" in text
    assert "| Gaussian | radazo | 0.1 (edge) | no descent | 0.00 (0.00 – 0.00)" in text
    assert "| coordinate + radazo | not beyond d = 7 | – | – |" in text
    rows = [row for row in text.splitlines() if row.startswith("| sphere + zo_sgd |")]
    assert rows == ["| sphere + zo_sgd | 2.25 | 0.58 | 1.15 |"]


def test_what_takes_more_than_values_is_never_the_best(monkeypatch):
    row = ROWS["mezo"]._replace(is_reference=True)
    monkeypatch.setitem(ROWS, "mezo", row)
    text = estimators_report.markdown(all_lines())
    assert "**sphere + zo_sgd**" in text
    assert "| MeZO + zo_sgd | 2.25 | 2.25 |" in text


def test_the_largest_budget_is_reported(tmp_path):
    quick = line_of("levy", "mezo", "zo_sgd", SLOW, (0, 1, 2, 3))
    quick["settings"]["budget"] = 3
    lines = [quick, *all_lines()]
    mains = estimators_report.main_groups(lines)
    assert mains["levy"]["mezo", "zo_sgd"]["settings"]["budget"] == 30
    assert "3 function values" in estimators_report.markdown(lines)
    paths = estimators_figures.draw(lines, tmp_path)
    names = [path.name for path in paths]
    assert names == ["estimators_radazo.png", "estimators_zo_sgd.png"]
