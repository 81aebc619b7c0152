"""A run by values of a pool: the steps of an optimizer, whatever its workers do."""

import contextlib
import functools
import http.server
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import jax
import numpy as np
import oracles
import pytest
from oracles import SHARES, Scripted, value_of

import radazo

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["radazo", "oracles"])
one_process = functools.partial(ProcessPoolExecutor, 1, mp_context=CONTEXT)
START = np.array([3.0, -1.0, 2.0, 0.5], np.float32)


@functools.cache  # One object, and steps are compiled once for all tests.
def optimizer(num_directions, difference=radazo.forward):
    estimator = radazo.gaussian_estimator(
        num_directions=num_directions, smoothing=1e-2, difference=difference
    )
    return radazo.radazo(0.1, estimator, key=3)


def pool_of(value_fn, executor=ThreadPoolExecutor, **options):
    options = {"max_concurrent": 3, "backoff": 0.001, "progress": False, **options}
    return radazo.pool.evaluation_pool(value_fn, executor, **options)


def by_hand(tried, num_steps, value_fn=value_of):
    """The run of ask and tell, one point after the other."""
    params, state = START, tried.init(START)
    for _ in range(num_steps):
        ids, point, _ = radazo.ask(tried, params, state)
        values = {id_: value_fn(np.asarray(point(id_))) for id_ in ids}
        params, state = radazo.tell(tried, params, state, values)
    return params, state


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("difference", [radazo.forward, radazo.central])
def test_a_run_is_that_of_ask_and_tell(difference):
    tried = optimizer(5, difference)
    with pool_of(value_of) as pool:
        result = pool.minimize(START, tried, 12)
    same((result.params, result.state), by_hand(tried, 12))
    assert (result.num_steps, result.status) == (12, "finished")
    assert result.values.shape == result.num_values.shape == (12,)
    assert result.num_values[-1] == pool.stats().calls == result.state.num_values
    assert result.values[-1] == result.state.last_value


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("executor", "kills"), [(one_process, 0.03), (ThreadPoolExecutor, 0.0)]
)
def test_under_faults_it_is_the_run_of_the_directions_that_survive(
    tmp_path, executor, kills
):
    shares, num_steps = {**SHARES, "kills": kills}, 12
    value_fn, tried = Scripted(tmp_path, shares), optimizer(8)
    with pool_of(value_fn, executor, timeout=0.5, max_retries=1) as pool:
        result = pool.minimize(START, tried, num_steps)
    stats, script = pool.stats(), oracles.Expected(shares, 1)
    same((result.params, result.state), by_hand(tried, num_steps, script))
    assert stats.calls == value_fn.num() == script.calls
    assert stats.lost == value_fn.num("kills") >= 2 * (kills > 0)
    assert min(stats.exceptions, stats.timeouts, stats.invalid) > 0
    assert result.state.num_dropped > 0
    assert value_of(result.params) < 0.3 * value_of(START)


def test_a_run_goes_on_from_a_state():
    tried = optimizer(5)
    with pool_of(value_of) as pool:
        first = pool.minimize(START, tried, 5)
        second = pool.minimize(first.params, tried, 7, state=first.state)
    same((second.params, second.state), by_hand(tried, 12))


@pytest.mark.parametrize("budget", [0, 5, 6, 17, 18])
def test_a_step_that_cannot_be_paid_is_not_begun(budget):
    tried = optimizer(5)  # 6 values a step.
    with pool_of(value_of, budget=budget) as pool:
        result = pool.minimize(START, tried, 9)
    assert result.status == "exhausted"
    assert result.num_steps == budget // 6
    assert pool.stats().calls == 6 * result.num_steps
    same((result.params, result.state), by_hand(tried, result.num_steps))


def test_a_step_in_which_the_budget_ends_is_given_up_as_a_whole(tmp_path):
    value_fn, tried = Scripted(tmp_path, {"raises": 0.4}), optimizer(5)
    with pool_of(value_fn, budget=40, max_retries=9) as pool:
        result = pool.minimize(START, tried, 40)
        again = pool.minimize(START, tried, 3)
    assert result.status == again.status == "exhausted"
    assert pool.stats().calls == value_fn.num() <= 40
    same((result.params, result.state), by_hand(tried, result.num_steps))
    assert 1 <= result.num_steps < 6
    assert again.num_steps == 0
    same(again.params, START)


def test_bounds_keep_the_parameters_of_a_run():
    bounds = -0.5, np.float32([1.0, 2.0, 2.0, 2.0])
    with pool_of(value_of) as pool:
        result = pool.minimize(START, optimizer(5), 9, bounds=bounds)
    params = np.clip(START, *bounds)
    state = optimizer(5).init(params)
    for _ in range(9):
        ids, point, _ = radazo.ask(optimizer(5), params, state)
        values = {id_: value_of(np.asarray(point(id_))) for id_ in ids}
        params, state = radazo.tell(optimizer(5), params, state, values)
        params = np.clip(params, *bounds)
    same((result.params, result.state), (params, state))
    assert np.any(result.params == np.clip(START, *bounds))


def test_a_run_that_failed_goes_on_from_its_checkpoint(tmp_path):
    tried, calls = optimizer(5), []

    def fail(result):
        if result.num_steps == 7:
            raise OSError

    def counted(x):
        calls.append(1)
        return value_of(x)

    for callback in (fail, None, None):
        with (
            radazo.run.open_checkpoints(tmp_path, interval_seconds=0) as checkpoints,
            pool_of(counted, cache=False) as pool,
            contextlib.suppress(OSError),
        ):
            result = pool.minimize(
                START, tried, 12, callback=callback, checkpoints=checkpoints
            )
    same((result.params, result.state), by_hand(tried, 12))
    assert result.num_steps == result.values.size == 12
    assert len(calls) == 6 * (7 + 12 - 6)  # The seventh step was not kept.
    assert pool.stats().calls == 0  # A run that has ended asks for nothing.


def test_a_callback_sees_each_step_and_may_end_the_run():
    seen = []

    def callback(result):
        seen.append(result)
        return result.num_steps == 4

    with pool_of(value_of) as pool:
        result = pool.minimize(START, optimizer(5), 9, callback=callback)
    assert [x.num_steps for x in seen] == [1, 2, 3, 4]
    assert (result.num_steps, result.status) == (4, "stopped")
    ended = {"status": "finished", "message": "The run goes on."}
    same(result._replace(**ended), seen[-1])
    same((seen[1].params, seen[1].state), by_hand(optimizer(5), 2))


def test_control_c_ends_the_run_after_the_step_under_way():
    def callback(result):
        if result.num_steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pool_of(value_of) as pool:
            result = pool.minimize(START, optimizer(5), 9, callback=callback)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.num_steps, result.status) == (3, "interrupted")


def test_where_every_call_fails_from_some_step_on_it_stays_there():
    calls = []

    def value_fn(point):
        calls.append(1)
        return value_of(point) if len(calls) <= 6 else oracles.leaves(point)

    with pool_of(value_fn, max_retries=0) as pool:
        result = pool.minimize(START, optimizer(5), 4)
    same(result.params, by_hand(optimizer(5), 1)[0])
    assert int(result.state.num_skipped) == 3
    assert pool.stats().last_failure == "SystemExit: 3"


PROGRAM = "import sys; print(sum((float(x) - 1) ** 2 for x in sys.argv[1:]))"


def by_program(point):
    call = [sys.executable, "-S", "-c", PROGRAM, *map(str, point.tolist())]
    return float(subprocess.check_output(call))


class Handler(http.server.BaseHTTPRequestHandler):
    """Every third answer is that the service is too busy."""

    num_requests = 0

    def do_POST(self):
        type(self).num_requests += 1
        x = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(503 if self.num_requests % 3 == 0 else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"value": value_of(x)}).encode())

    def log_message(self, *_):
        pass


def test_a_subprocess_is_a_function():
    tried = optimizer(5)
    with pool_of(by_program) as pool:
        result = pool.minimize(START, tried, 2)
    for mine, other in zip(result.params, by_hand(tried, 2)[0], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_a_service_is_a_function_and_is_called_again_when_it_is_busy():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def by_service(point):
        data = json.dumps(point.tolist()).encode()
        try:
            with urllib.request.urlopen(url, data, timeout=9) as reply:
                return json.loads(reply.read())["value"]
        except urllib.error.HTTPError as busy:
            busy.close()
            raise

    try:
        with pool_of(by_service, max_retries=9, max_concurrent=1) as pool:
            result = pool.minimize(START, optimizer(5), 4)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    same(result.params, by_hand(optimizer(5), 4)[0])
    stats = pool.stats()
    assert stats.calls == Handler.num_requests == 24 + stats.exceptions
    assert (stats.failed, stats.exceptions) == (0, Handler.num_requests // 3)
