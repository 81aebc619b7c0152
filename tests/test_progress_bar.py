"""Callbacks, Ctrl-C and the progress bar of a run."""

import builtins
import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo
from radazo.run import loop

START = jnp.array([2.0, -1.0, 0.5])


def run(num_steps=40, **options):
    estimator = radazo.sphere_estimator(num_directions=4)
    optimizer = radazo.radazo(0.05, estimator, key=0)
    return radazo.minimize(
        half_sum_of_squares, START, optimizer, num_steps, progress=False, **options
    )


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def handler():
    """A handler of the caller, which must be restored after a run."""
    seen = []

    def own(number, frame):
        seen.append(number)

    before = signal.signal(signal.SIGINT, own)
    yield own, seen
    signal.signal(signal.SIGINT, before)


def test_callbacks_get_the_result_so_far():
    results = []
    final = run(callback=results.append, callback_every=8)
    assert [result.num_steps for result in results] == [8, 16, 24, 32, 40]
    for result in results:
        assert result.values.shape == result.num_values.shape == (result.num_steps,)
        assert int(result.state.count) == result.num_steps
        assert int(result.state.num_values) == result.num_values[-1]
        np.testing.assert_array_equal(result.values, final.values[: result.num_steps])
        assert float(result.state.last_value) == result.values[-1]
        assert result.status == "finished"
    np.testing.assert_array_equal(results[-1].params, final.params)
    np.testing.assert_array_equal(results[0].params, run(8).params)


def test_a_run_resumes_from_the_result_of_a_callback():
    results = []
    final = run(callback=results.append, callback_every=20)
    estimator = radazo.sphere_estimator(num_directions=4)
    rest = radazo.minimize(
        half_sum_of_squares,
        results[0].params,
        radazo.radazo(0.05, estimator, key=0),
        20,
        state=results[0].state,
    )
    np.testing.assert_array_equal(rest.params, final.params)


def test_without_callback_every_callbacks_follow_each_compiled_call(monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0.0)  # One step a call.
    seen = []
    run(12, callback=lambda result: seen.append(result.num_steps))
    assert seen == list(range(1, 13))


@pytest.mark.parametrize("answer", [True, np.True_, jnp.array(True)])
def test_a_callback_that_returns_true_ends_the_run(answer):
    stop = lambda result: answer if result.num_steps == 10 else None
    result = run(callback=stop, callback_every=5)
    assert (result.num_steps, result.status) == (10, "stopped")
    np.testing.assert_array_equal(result.params, run(10).params)


@pytest.mark.parametrize("answer", [None, False, np.False_, 1, "stop", [0]])
def test_a_callback_that_returns_anything_else_does_not(answer):
    result = run(callback=lambda result: answer, callback_every=5)
    assert (result.num_steps, result.status) == (40, "finished")


def test_an_error_of_a_callback_is_raised_and_the_handler_restored(handler):
    def broken(result):
        message = "of the caller"
        raise LookupError(message)

    with pytest.raises(LookupError, match="of the caller"):
        run(callback=broken)
    assert signal.getsignal(signal.SIGINT) is handler[0]


def test_control_c_ends_the_run_with_the_result_so_far(handler):
    at_ten = lambda result: interrupt() if result.num_steps == 10 else None
    result = run(callback=at_ten, callback_every=5)
    assert (result.num_steps, result.status) == (10, "interrupted")
    np.testing.assert_array_equal(result.params, run(10).params)
    assert result.values.shape == (10,)
    own, seen = handler
    assert (signal.getsignal(signal.SIGINT), seen) == (own, [])


def test_control_c_in_the_last_step_is_not_lost(handler):
    result = run(10, callback=lambda result: interrupt(), callback_every=10)
    assert (result.num_steps, result.status) == (10, "interrupted")


@pytest.fixture
def listening():
    """Python's own handler, since a background job starts with Ctrl-C ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_control_c_lets_the_current_steps_finish(listening):
    timer = threading.Timer(0.3, interrupt)
    host = lambda x: np.float32(np.sum(np.square(np.asarray(x))))

    def value_fn(params):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(host, shape, params, vmap_method="sequential")

    started = lambda result: timer.start() if result.num_steps == 1 else None
    result = radazo.minimize(
        value_fn, START, radazo.radazo(0.01, key=0), 10**7, callback=started
    )
    timer.join()
    assert result.status == "interrupted"
    assert 1 <= result.num_steps < 10**7
    assert result.values.shape == (result.num_steps,)
    assert int(result.state.count) == result.num_steps
    assert np.all(np.isfinite(result.values))


def test_control_c_twice_is_raised_at_once(handler):
    def twice(result):
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run(callback=twice, callback_every=5)
    assert signal.getsignal(signal.SIGINT) is handler[0]


def test_the_callers_handler_gets_control_c_after_a_run(handler):
    run(1)
    interrupt()
    assert handler[1] == [signal.SIGINT]


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = run(callback=lambda result: interrupt(), callback_every=5)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.num_steps, result.status) == (40, "finished")


def test_a_run_in_another_thread_leaves_signals_alone(handler):
    results, handlers = [], []

    def work():
        note = lambda result: handlers.append(signal.getsignal(signal.SIGINT))
        results.append(run(20, callback=note, callback_every=10))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [handler[0]] * 2
    assert results[0].status == "finished"
    np.testing.assert_array_equal(results[0].params, run(20).params)


def minimize_shown(progress):
    return radazo.minimize(
        half_sum_of_squares, START, radazo.radazo(0.1, key=0), 30, progress=progress
    )


def test_a_bar_shows_the_steps_and_the_value(capfd):
    result = minimize_shown(True)
    seen = capfd.readouterr().err
    assert "30/30" in seen
    assert f"value {result.values[-1]:.6g}" in seen


@pytest.mark.parametrize("progress", [None, False])
def test_a_run_is_silent_where_there_is_no_terminal(capfd, progress):
    minimize_shown(progress)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_by_default(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    minimize_shown(None)
    assert "30/30" in capfd.readouterr().err


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)


def test_progress_true_needs_tqdm(without_tqdm):
    explained(
        Mistake(
            lambda: minimize_shown(True),
            ValueError,
            "minimize(progress",
            "be None or False without tqdm",
            "True.",
            "Install tqdm: `pip install tqdm`.",
        )
    )


def test_a_run_without_tqdm_has_no_bar(without_tqdm, capfd):
    assert minimize_shown(None).status == "finished"
    assert capfd.readouterr().err == ""


def test_a_run_neither_prints_nor_asks(monkeypatch):
    def talk(*_, **__):
        message = "a run must not talk"
        raise RuntimeError(message)

    monkeypatch.setattr(builtins, "print", talk)
    monkeypatch.setattr(builtins, "input", talk)
    assert run(3).status == "finished"


def test_the_error_for_a_numpy_function_names_pure_callback():
    def value_fn(x):
        return np.float32(np.sum(np.abs(x)))

    optimizer = radazo.radazo(0.1, key=0)
    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        radazo.minimize(value_fn, jnp.ones(2), optimizer, 2)
    assert any("jax.pure_callback" in note for note in caught.value.__notes__)
