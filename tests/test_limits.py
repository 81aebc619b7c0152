"""A run ends at the first of its limits or by itself, and says why."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares

import radazo
from radazo.run import limits, loop

START = jnp.array([2.0, -1.0, 0.5])


def sgd(rate=0.05, **options):
    estimator = radazo.sphere_estimator(num_directions=4, **options)
    return radazo.zo_sgd(rate, estimator, key=0)


def run(num_steps=None, optimizer=None, value_fn=half_sum_of_squares, **options):
    optimizer = optimizer or sgd()
    options = {"progress": False} | options
    return radazo.minimize(value_fn, START, optimizer, num_steps, **options)


def reusing():
    estimator = radazo.history_reuse_estimator(num_directions=4)
    return radazo.zo_sgd(0.05, estimator, key=0)


def refreshing():
    """Every third step takes more function values than the others."""
    estimator = radazo.svrg_estimator(
        radazo.sphere_estimator(num_directions=4),
        half_sum_of_squares,
        num_inner_steps=3,
    )
    return radazo.zo_sgd(0.01, estimator, key=0)


def same(one, other):
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    for x, y in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("steps_per_call", [1024, 3])
@pytest.mark.parametrize("make", [reusing, sgd, refreshing])
def test_every_step_within_the_number_of_values_is_taken_and_none_beyond(
    monkeypatch, make, steps_per_call
):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", steps_per_call)
    whole = run(12, make())
    for budget in (whole.num_values[0], whole.num_values[6], whole.num_values[6] + 1):
        fitting = int(np.sum(whole.num_values <= budget))
        result = run(None, make(), max_values=int(budget))
        assert (result.num_steps, result.status) == (fitting, "max_values")
        assert f"exceed {budget} function values; {result.num_values[-1]} are used" in (
            result.message
        )
        same(result[:4], run(fitting, make())[:4])


def test_values_before_the_run_do_not_count():
    first = run(3)
    result = radazo.minimize(
        half_sum_of_squares, first.params, sgd(), state=first.state, max_values=14
    )
    assert result.num_values.tolist() == [20, 25]
    assert "exceed 14 function values; 10 are used" in result.message
    same(result.params, run(5).params)


def test_too_few_values_for_a_step_are_refused_before_the_first():
    def value_fn(params):
        message = "must not be called"
        raise RuntimeError(message)

    with pytest.raises(ValueError, match=r"must be at least 5, the function values"):
        run(value_fn=value_fn, max_values=4)


def test_no_batch_is_taken_for_a_step_that_is_not():
    items = iter(np.float32(i) for i in range(9))
    value_fn = lambda params, batch: half_sum_of_squares(params) + batch
    result = run(9, value_fn=value_fn, batches=items, max_values=16)
    assert (result.num_steps, result.status, next(items)) == (3, "max_values", 3)


def test_a_target_ends_the_run_with_the_parameters_that_reach_it():
    result = run(target=0.5)
    assert (result.status, result.message) == ("target", "The target 0.5 is reached.")
    assert half_sum_of_squares(result.params) <= 0.5 < np.min(result.values[:-1])
    stopped = run(500, stop=lambda value, params: value <= 0.5)
    assert stopped.status == "stopped"
    same(result[:4], stopped[:4])
    both = run(500, target=0.5, stop=lambda value, params: value < 1)
    assert (both.status, both.num_steps < result.num_steps) == ("stopped", True)
    assert run(10, target=-1).status == "finished"


def test_the_time_is_looked_at_after_each_call(monkeypatch):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", 1)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def callback(result):
        clock[0] += 1

    result = run(max_seconds=6.5, callback=callback)
    assert (result.num_steps, result.status) == (7, "max_seconds")
    assert result.message == "The limit of 6.5 seconds is reached."
    same(result[:4], run(7)[:4])
    assert run(7, max_seconds=6.5, callback=callback).status == "finished"


@pytest.mark.gate
def test_a_run_does_not_take_much_longer_than_its_time():
    def value_fn(params):
        def host(x):
            time.sleep(2e-3)
            return np.float32(np.sum(np.square(np.asarray(x))))

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(host, shape, params, vmap_method="sequential")

    begun = time.perf_counter()
    result = run(value_fn=value_fn, max_seconds=2.0)
    seconds = time.perf_counter() - begun
    assert result.status == "max_seconds"
    # A call of a fifth of a second, and what the slowest machine adds.
    assert 2 <= seconds < 3.5


def checks(num_steps):
    """The steps after which it is looked at whether values still fall, by a loop."""
    seen, step = [], 0
    while (step := limits.next_check(step)) <= num_steps:
        seen.append(step)
    return seen


def end_of(values, per_step=5, num_elements=3):
    """Where a run with these values ends by itself, at any of all steps."""
    numbers = (len(values[:n]) * per_step for n in range(len(values) + 1))
    return next(
        n
        for n, number in enumerate(numbers)
        if n == len(values)
        or limits.has_converged(np.asarray(values[:n]), number, num_elements)
    )


def test_checks_are_a_quarter_apart():
    seen = checks(10_000)
    assert seen[:4] == [200, 250, 312, 390]
    assert seen[1:] == [step + step // 4 for step in seen[:-1]]


def test_values_that_fall_go_on_and_values_that_do_not_end():
    n, draws = np.arange(1, 4001), np.random.default_rng(0)
    falling = {
        "slowly": 1 / np.sqrt(n),
        "in a valley": 5 - 1e-4 * n,
        "in stairs": -np.floor(n / 100.0),
        "but for rare peaks": 1 / n + 1e3 * (n % 50 == 0),
        "but for some without a value": np.where(n % 7 == 0, np.nan, -n),
        "with noise": 1e-2 * draws.normal(size=n.size) - np.log(n),
        "only at last": np.where(n < 150, 3.0, 3 - n / 1e6),
    }
    assert {name: end_of(values) for name, values in falling.items()} == dict.fromkeys(
        falling, n.size
    )
    level = np.ones(n.size)
    assert (end_of(level), end_of(-level * np.inf), end_of(level * np.nan)) == (
        250,
    ) * 3
    assert (end_of(n), end_of(np.maximum(1 / n, 1 / 90))) == (250, 250)
    # A new minimum in one half of cases, and a lower median: some checks are passed.
    noise = [end_of(draws.normal(size=n.size)) for _ in range(40)]
    assert min(noise) == 250
    assert np.median(noise) < 1000
    # A floor that is reached after 700 steps has to last as long.
    assert end_of(np.maximum(1.0 / n, 1 / 700)) in checks(2500)[-4:]


def test_no_run_ends_before_four_values_per_element():
    level = np.ones(4000)
    assert (
        end_of(level, per_step=5, num_elements=1000) == 950
    )  # The first check over 800.
    assert end_of(level, per_step=1, num_elements=1000) == len(level)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("steps_per_call", [1024, 7])
def test_a_run_ends_by_itself_wherever_calls_end(monkeypatch, steps_per_call, tmp_path):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", steps_per_call)
    staircase = lambda x: jnp.sum(jnp.round(4 * jnp.abs(x - 1)))
    optimizer = sgd(0.02, smoothing=0.3)
    result = run(None, optimizer, staircase)
    assert result.status == "converged"
    assert result.message.startswith("The values no longer fall")
    assert result.num_steps in checks(result.num_steps)
    assert np.min(result.values) == result.best_value == staircase(result.best_params)
    assert result.best_value < result.values[0]
    # Neither numbers of steps nor callbacks end it elsewhere.
    same(result[:4], run(result.num_steps, optimizer, staircase)[:4])
    seen = []
    called = run(None, optimizer, staircase, callback=seen.append, callback_every=90)
    same(called, result)
    assert [x.num_steps for x in seen] == list(range(90, result.num_steps + 1, 90))
    assert {(x.status, x.message) for x in seen} == {("running", "The run goes on.")}


def test_a_level_function_is_said_to_be_level():
    result = run(value_fn=lambda x: 0 * jnp.sum(x) + 3)
    assert (result.num_steps, result.status) == (250, "converged")
    assert result.message.endswith(
        "All are 3: increase the smoothing, or start elsewhere."
    )


def test_the_history_of_an_open_run_has_one_element_a_step():
    result = run(None, sgd(1e-3), target=0.01)
    assert result.num_steps > 2 * loop.MAX_STEPS_PER_CALL
    assert result.values.shape == result.num_values.shape == (result.num_steps,)
    assert result.num_values.tolist() == [5 * (i + 1) for i in range(result.num_steps)]


def test_the_best_parameters_are_those_of_the_lowest_value(tmp_path):
    optimizer = sgd(0.7)  # So fast that values rise again and again.
    kept = run(60, optimizer, keep_best=True)
    plain = run(60, optimizer)
    assert kept.best_value == plain.best_value == np.min(kept.values)
    assert kept.best_value < kept.values[-1]
    before = run(int(np.argmin(kept.values)), optimizer).params
    np.testing.assert_allclose(kept.best_params, before, rtol=1e-5)
    assert plain.best_params is None
    same(kept[:4], plain[:4])
    recorded = run(60, optimizer, keep_best=True, journal=tmp_path / "journal")
    np.testing.assert_allclose(recorded.best_params, before, rtol=1e-5)
    assert recorded.best_value == np.min(recorded.values)


def test_values_that_are_not_finite_are_never_the_best():
    value_fn = lambda x: jnp.where(jnp.sum(x) < 1, -jnp.inf, half_sum_of_squares(x))
    result = run(40, value_fn=value_fn, keep_best=True)
    assert np.isneginf(result.values).any()
    assert result.best_value == np.min(result.values[np.isfinite(result.values)])
    assert value_fn(result.best_params) == np.float32(result.best_value)


def test_in_place_keeps_no_second_copy_unless_asked():
    optimizer = radazo.in_place(optax.sgd(0.05), key=0)
    assert run(None, optimizer, max_values=100).best_params is None
    result = run(None, optimizer, max_values=100, keep_best=True)
    best = half_sum_of_squares(result.best_params)
    np.testing.assert_allclose(best, result.best_value, rtol=1e-3)


@pytest.mark.parametrize("options", [{"num_steps": 60}, {"max_values": 300}, {}])
def test_a_run_that_ends_above_its_start_is_not_said_to_be_finished(options):
    result = run(optimizer=sgd(2.5), **options)
    assert result.status == "diverged"
    assert "Lower the learning rate, or change the smoothing." in result.message
    assert result.best_value <= result.values[0] < result.values[-1]


def test_a_run_without_a_value_at_the_end_is_not_said_to_be_finished():
    value_fn = lambda x: jnp.where(jnp.sum(x) < 1, jnp.nan, half_sum_of_squares(x))
    result = run(60, value_fn=value_fn)
    assert result.status == "diverged"
    assert "The last value, nan, is not finite." in result.message


def test_noise_is_not_taken_for_divergence():
    values = np.random.default_rng(0).normal(size=(200, 80))
    values[:, 0] = 0
    assert not any(limits.has_diverged(x, with_batches=False) for x in values)
    assert limits.has_diverged(np.array([1.0, 2.0]), with_batches=False)
    assert not limits.has_diverged(np.array([1.0, 2.0]), with_batches=True)


def test_an_open_run_is_compiled_once():
    traces = []

    def value_fn(params):
        traces.append(1)
        return half_sum_of_squares(params)

    run(1, value_fn=value_fn)
    once = len(traces)
    result = run(None, sgd(1e-3), value_fn, target=0.01, max_values=10**6)
    assert result.status == "target"
    assert len(traces) == 2 * once


def test_control_c_ends_an_open_run():
    at_ten = lambda result: (
        os.kill(os.getpid(), signal.SIGINT) if result.num_steps == 10 else None
    )
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run(callback=at_ten, callback_every=5)
    finally:
        signal.signal(signal.SIGINT, old)
    assert (result.num_steps, result.status) == (10, "interrupted")
    same(result[:4], run(10)[:4])


def test_a_bar_of_an_open_run_counts_steps(capfd):
    result = run(target=0.5, progress=True)
    assert f"{result.num_steps}it" in capfd.readouterr().err


def test_an_open_run_is_saved_and_resumed(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    optimizer = sgd(0.7)
    whole = run(None, optimizer)
    assert whole.status == "converged"
    first = run(None, optimizer, checkpoints=tmp_path, max_values=600)
    assert (first.num_steps, first.status) == (120, "max_values")
    second = run(None, optimizer, checkpoints=tmp_path)
    same(second, whole)
    again = run(None, optimizer, checkpoints=tmp_path, value_fn=lambda x: 1 / 0)
    same(again, whole)
    # The values of earlier calls count, and a target that was reached ends it again.
    folder = tmp_path / "target"
    for _ in range(2):
        reached = run(None, optimizer, checkpoints=folder, target=0.5)
        assert reached.status == "target"


def hills(x):
    """Many minima; the lowest is at 0, and 0."""
    return jnp.sum(x**2 / 10 + 1 - jnp.cos(3 * x))


def without_optimizer(value_fn=hills, start=START + 3, **options):
    return radazo.minimize(value_fn, start, progress=False, **options)


def test_without_an_optimizer_nothing_is_to_be_chosen():
    result = without_optimizer()
    assert result.status == "converged"
    assert "The values no longer fall: each of the last two" in result.message
    assert result.num_steps in checks(result.num_steps)
    assert int(result.state.estimator.search.num_idle) >= 2
    # The first local search is stuck higher up.
    auto = radazo.zo_auto(key=0)
    first = without_optimizer(optimizer=auto, max_values=400)
    assert result.best_value < 1e-3
    assert first.best_value > 0.1
    np.testing.assert_allclose(hills(result.best_params), result.best_value, atol=1e-6)
    assert first.status == "max_values"
    same(first, without_optimizer(max_values=400))
    # With a number of steps, too, the best parameters are the answer.
    counted = without_optimizer(num_steps=first.num_steps)
    assert counted.status == "finished"
    same(counted.best_params, first.best_params)
    assert without_optimizer(num_steps=1, keep_best=False).best_params is None


def test_a_wide_search_at_the_end_is_no_divergence():
    value_fn, start = lambda x: hills(x - 10), jnp.array([10.0, 10.0, 10.01])
    seen = []
    without_optimizer(value_fn, start, callback=seen.append, callback_every=20)
    up = [x for x in seen if limits.has_diverged(x.values, with_batches=False)]
    assert up
    ended = without_optimizer(value_fn, start, num_steps=up[0].num_steps)
    same(ended.values, up[0].values)
    assert ended.values[-1] > ended.values[0] > ended.best_value
    assert ended.status == "finished"


def test_zo_auto_says_what_to_do_without_a_number_to_tune():
    level = without_optimizer(lambda x: 0 * jnp.sum(x) + 3)
    assert level.status == "converged"
    assert level.message.endswith("All are 3: start elsewhere.")
    nowhere = without_optimizer(lambda x: jnp.sum(x) * jnp.nan)
    assert (nowhere.status, nowhere.num_steps) == ("diverged", 250)
    assert nowhere.message.endswith(
        "The last value, nan, is not finite. Start elsewhere."
    )


def test_zo_auto_ends_by_its_values_where_they_have_noise():
    value_fn = lambda x, noise: half_sum_of_squares(x) * (1 + noise) + noise
    noise = lambda step: jax.random.normal(jax.random.key(step)) / 10
    result = without_optimizer(value_fn, batches=noise, bounds=(0.5, 4))
    assert result.status == "converged"
    assert "the last quarter has neither" in result.message
    assert int(result.state.estimator.search.num_searches) == 0
    np.testing.assert_allclose(result.params, 0.5)
    assert np.all(np.asarray(result.best_params) >= 0.5)
