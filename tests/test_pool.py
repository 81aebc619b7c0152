"""A pool pays for each call once, loses none, and goes on whatever its workers do."""

import decimal
import fractions
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import SHARES, Gauge, Scripted, value_of

import radazo

DIM = 3
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["radazo", "oracles"])
one_process = functools.partial(ProcessPoolExecutor, 1, mp_context=CONTEXT)


def points(num, start=0):
    return [np.full(DIM, i, np.float32) for i in range(start, start + num)]


def pool_of(value_fn, executor=ThreadPoolExecutor, **options):
    options = {"max_concurrent": 3, "backoff": 0.001, "progress": False, **options}
    return radazo.pool.evaluation_pool(value_fn, executor, **options)


def evaluated(pool, queries):
    """Values in the order of the points; all have come, each once."""
    pairs = list(pool.evaluate(enumerate(queries)))
    assert sorted(name for name, _ in pairs) == list(range(len(queries)))
    return [value for _, value in sorted(pairs)]


def balanced(stats):
    kinds = (stats.values, stats.invalid, stats.exceptions, stats.timeouts)
    assert stats.calls == sum(kinds) + stats.lost + stats.under_way
    return stats


def test_values_come_as_they_are_ready_and_points_are_arrays_of_numpy():
    first = threading.Event()

    def value_fn(point):
        assert type(point["x"]) is np.ndarray
        assert (point["none"], point["int"]) == (None, 3)
        if point["x"][0] == 0:
            first.wait(30)
        elif point["x"][0] == 2:
            first.set()
        return np.float32(point["x"].sum(dtype=np.float32))

    queries = [
        (i, {"x": jnp.full(2, i, jnp.bfloat16), "none": None, "int": 3})
        for i in range(3)
    ]
    with pool_of(value_fn, max_concurrent=2) as pool:
        pairs = list(pool.evaluate(iter(queries)))
    assert pairs[0] == (1, 2.0)
    assert sorted(pairs) == [(0, 0.0), (1, 2.0), (2, 4.0)]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("executor", "kills", "num"), [(ThreadPoolExecutor, 0, 60), (one_process, 0.06, 60)]
)
def test_the_stats_are_what_the_script_of_faults_gives(tmp_path, executor, kills, num):
    shares = {**SHARES, "kills": kills}
    value_fn, queries = Scripted(tmp_path, shares), points(num)
    script = oracles.Expected(shares, 2)
    values = [script(point) for point in queries]
    counts = script.counts
    with pool_of(value_fn, executor, timeout=0.5) as pool:
        np.testing.assert_array_equal(evaluated(pool, queries), values)
        stats = balanced(pool.stats())
    assert stats.calls == value_fn.num() == script.calls
    assert stats.values == counts["none"]
    assert stats.invalid == counts["nan"] > 0
    assert stats.exceptions == counts["raises"] > 0
    assert stats.timeouts == counts["hangs"] > 0
    assert stats.lost == counts["kills"] == value_fn.num("kills") >= 2 * (kills > 0)
    assert stats.failed == counts["failed"]
    assert stats.retries == stats.calls - num
    assert (stats.queries, stats.cached, stats.under_way) == (num, 0, 0)
    assert stats == pool.stats()  # It is there when the pool is closed.


@pytest.mark.parametrize("budget", [0, 1, 7, 30, 31, 39, 1000])
@pytest.mark.parametrize("max_concurrent", [1, 8])
def test_the_budget_is_never_passed_and_all_of_it_is_used(
    tmp_path, budget, max_concurrent
):
    shares = {"raises": 0.3}
    value_fn, queries = Scripted(tmp_path, shares), points(30)
    script = oracles.Expected(shares, 2)
    for point in queries:
        script(point)
    needed = script.calls
    assert 39 < needed < 1000
    options = {"budget": budget, "max_concurrent": max_concurrent, "backoff": 0}
    with pool_of(value_fn, **options) as pool:
        values = dict(pool.evaluate(enumerate(queries)))
        stats = balanced(pool.stats())
    assert stats.calls == value_fn.num() == min(budget, needed)
    assert len(values) == stats.values + stats.failed
    if budget < needed:
        assert len(values) < len(queries)
        with pytest.raises(RuntimeError, match="a pool that is closed"):
            list(pool.evaluate([]))


def test_a_point_is_made_when_there_is_room_for_it_and_dropped_with_its_value():
    alive, most = weakref.WeakValueDictionary(), []

    class Point(np.ndarray):
        def __array_finalize__(self, other):
            alive[next(number)] = self

    number = itertools.count()

    def made():
        for i in range(40):
            yield i, np.full(5, i, np.float32).view(Point)
            most.append(len(alive))

    with pool_of(value_of, max_concurrent=4, cache=False) as pool:
        assert len(dict(pool.evaluate(made()))) == 40
    # Each call has a copy of its own; a worker may still have what it has answered for.
    assert 4 <= max(most) <= 2 * 9


def test_as_many_calls_are_under_way_as_may_be():
    gauge = Gauge(parties=5)  # Each call waits for four others.
    with pool_of(gauge, max_concurrent=5) as pool:
        evaluated(pool, points(20))
    assert (gauge.most, gauge.calls) == (5, 20)
    with ThreadPoolExecutor(8) as executor:
        gauge = Gauge(parties=5)
        with pool_of(gauge, executor, max_concurrent=5) as pool:
            evaluated(pool, points(20))
        assert gauge.most == 5
        assert executor.submit(int).result() == 0  # It was not shut down.


def test_equal_points_are_one_call_now_and_later():
    gauge = Gauge()
    with pool_of(gauge) as pool:
        same = [np.ones(3, np.float32), np.ones(3), np.ones((3, 1)), (np.ones(3),)]
        queries = same * 4
        assert evaluated(pool, queries) == [value_of(same[0])] * 16
        assert evaluated(pool, queries[:2]) == [value_of(same[0])] * 2
        stats = pool.stats()
    assert (stats.calls, gauge.calls, stats.cached) == (4, 4, 14)


def test_nan_is_not_kept():
    values = iter([np.nan, 1.0])
    with pool_of(lambda point: next(values)) as pool:
        assert np.isnan(evaluated(pool, points(1))).all()
        assert evaluated(pool, points(1)) == [1.0]


def test_without_a_cache_each_query_is_a_call():
    gauge = Gauge()
    with pool_of(gauge, cache=False) as pool:
        evaluated(pool, [np.ones(3)] * 6)
    assert (gauge.calls, pool.stats().cached) == (6, 0)


def test_a_cache_keeps_what_was_used_last():
    gauge = Gauge()
    a, b, c = points(3)
    with pool_of(gauge, cache=2, max_concurrent=1) as pool:
        for point, num_calls in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4)):
            evaluated(pool, [point])
            assert gauge.calls == num_calls


def test_equal_points_under_way_share_a_failure_and_a_later_one_tries_again():
    calls = []

    def value_fn(point):
        calls.append(1)
        if len(calls) <= 2:
            raise OSError
        return 1.0

    with pool_of(value_fn, max_retries=1) as pool:
        assert np.isnan(evaluated(pool, [np.ones(2)] * 3)).all()
        assert evaluated(pool, [np.ones(2)] * 3) == [1.0] * 3
    stats = balanced(pool.stats())
    assert (stats.calls, stats.failed, stats.cached) == (3, 1, 4)


def test_no_end_of_equal_points_is_served():
    with pool_of(value_of) as pool:
        same = ((i, np.ones(2)) for i in itertools.count())
        values = list(itertools.islice(pool.evaluate(same), 1000))
    assert len(values) == 1000
    assert pool.stats().calls == 1


def test_pauses_double_and_others_go_on_meanwhile():
    began = {}

    def value_fn(point):
        began.setdefault(int(point[0]), []).append(time.monotonic())
        if point[0] == 0:
            raise OSError
        return 0.0

    with pool_of(value_fn, max_retries=3, backoff=0.05, max_concurrent=2) as pool:
        values = evaluated(pool, points(5))
    assert np.isnan(values[0])
    assert values[1:] == [0.0] * 4
    gaps = np.diff(began[0])
    assert np.all(gaps >= [0.05, 0.1, 0.2])
    assert began[4][0] < began[0][-1]
    assert pool.stats().last_failure == "OSError"


def test_what_a_function_writes_into_its_point_is_seen_by_no_other_call():
    calls = []

    def value_fn(point):
        point += 1
        calls.append(1)
        if len(calls) == 1:
            raise OSError
        return np.sum(point)

    with pool_of(value_fn) as pool:
        assert evaluated(pool, [np.zeros(2)]) == [2.0]
        result = pool.minimize(np.zeros(2, np.float32), radazo.zo_sgd(0.1, key=0), 2)
    assert result.num_steps == 2
    assert np.all(result.params != 0)


def test_a_buffer_that_is_filled_again_makes_points_of_its_own():
    buffer = np.zeros(2)

    def queries():
        for i in range(4):
            buffer[:] = i
            yield i, buffer

    with pool_of(np.sum, max_concurrent=4) as pool:
        found = dict(pool.evaluate(queries()))
    assert found == {0: 0.0, 1: 2.0, 2: 4.0, 3: 6.0}
    assert pool.stats().calls == 4


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (2, 2.0),
        (np.int8(2), 2.0),
        (np.array(2.5, np.float16), 2.5),
        (jnp.bfloat16(2.5), 2.5),
        (jnp.array(2.5), 2.5),
        (np.inf, np.inf),
        (10**30, 1e30),
        (10**400, np.inf),
        (fractions.Fraction(5, 2), 2.5),
        (decimal.Decimal("2.5"), 2.5),
        (np.longdouble(2.5), 2.5),
        (True, None),
        (np.True_, None),
        ([1, [2]], None),
        (None, None),
        ("2.5", None),
        (2.5j, None),
        ([2.5], None),
        (np.ones(1), None),
        (float("nan"), None),
    ],
)
def test_an_answer_is_final_and_nan_if_it_is_no_real_number(returned, value):
    with pool_of(lambda point: returned) as pool:
        np.testing.assert_array_equal(
            evaluated(pool, points(1)), [np.nan if value is None else value]
        )
    stats = balanced(pool.stats())
    assert (stats.calls, stats.invalid) == (1, int(value is None))
    wanted = f"returned {returned!r}" if value is None else ""
    assert stats.last_failure == wanted


@pytest.mark.parametrize(
    ("value_fn", "text"),
    [
        (oracles.raises_unpicklable, "oracles.UnpicklableError: 1 and 2"),
        (oracles.leaves, "SystemExit: 3"),
    ],
)
def test_whatever_a_process_raises_leaves_it_alive(value_fn, text):
    with pool_of(value_fn, one_process, max_concurrent=1) as pool:
        assert np.isnan(evaluated(pool, points(1))).all()
    stats = balanced(pool.stats())
    assert (stats.exceptions, stats.lost, stats.last_failure) == (3, 0, text)


@pytest.fixture
def hanging():
    """A function that hangs at negative points, until the test ends."""
    end = threading.Event()
    gauge = Gauge()

    def value_fn(point):
        if point[0] < 0:
            gauge(point)
            end.wait(60)
            return 0.0
        return gauge(point)

    yield value_fn, gauge, end
    end.set()


def test_threads_that_hang_do_not_exhaust_a_pool_that_makes_executors(hanging):
    value_fn, gauge, _ = hanging
    options = {"timeout": 0.1, "max_retries": 1, "max_concurrent": 2}
    with pool_of(value_fn, **options) as pool:
        values = evaluated(pool, [*points(4, -4), *points(4)])
    assert np.isnan(values[:4]).all()
    assert values[4:] == [value_of(point) for point in points(4)]
    stats = balanced(pool.stats())
    assert (stats.timeouts, stats.failed, stats.calls) == (8, 4, 12)
    assert stats.calls == gauge.calls
    assert stats.last_failure == "took longer than 0.1 s"


def test_threads_that_hang_keep_their_place_in_an_executor_given_as_it_is(hanging):
    value_fn, gauge, end = hanging
    with ThreadPoolExecutor(2) as executor:
        options = {"timeout": 0.1, "max_retries": 0, "max_concurrent": 2}
        with pool_of(value_fn, executor, **options) as pool:
            values = evaluated(pool, [*points(1, -1), *points(6)])
            assert np.isnan(values[0])
            assert values[1:] == [value_of(point) for point in points(6)]
            queries = enumerate([*points(1, -2), *points(2, 10)])
            arrived = []
            hint = r"(?s)must be a function that makes executors if calls may.*2"
            with pytest.raises(RuntimeError, match=hint):
                arrived.extend(pool.evaluate(queries))
            assert np.isnan(arrived[0][1])
            end.set()  # Their calls end, and their places are free again.
            assert evaluated(pool, points(2, 20)) == [
                value_of(point) for point in points(2, 20)
            ]
    assert pool.stats().timeouts == 2
    assert pool.stats().calls == gauge.calls


def test_a_worker_killed_loses_its_call_alone(tmp_path):
    value_fn = functools.partial(oracles.waits_for, str(tmp_path))
    with pool_of(value_fn, one_process, max_concurrent=2) as pool:
        values = pool.evaluate(enumerate(points(4)))
        killer = threading.Thread(target=kill_one_of, args=(tmp_path, 2, True))
        killer.start()
        assert sorted(values) == [(i, value_of(x)) for i, x in enumerate(points(4))]
        killer.join()
    stats = balanced(pool.stats())
    assert (stats.calls, stats.lost, stats.retries) == (5, 1, 1)
    assert stats.calls == oracles.size(tmp_path / "calls")


def kill_one_of(folder, num, ending):
    """When `num` calls have begun, kill the process of one; True lets others end."""
    deadline = time.monotonic() + 60
    while oracles.size(folder / "calls") < num and time.monotonic() < deadline:
        time.sleep(0.01)
    pid = processes(folder)[0]
    os.kill(pid, signal.SIGKILL)
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ending:
        (folder / "end").touch()


def processes(folder):
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def is_running(pid):
    """Whether there is such a process, and it is more than an entry in a table."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


def test_a_process_that_hangs_is_killed(tmp_path):
    value_fn = functools.partial(oracles.waits_for, str(tmp_path))
    options = {"timeout": 0.2, "max_retries": 1, "max_concurrent": 1}
    with pool_of(value_fn, one_process, **options) as pool:
        assert np.isnan(evaluated(pool, points(1))).all()
        pids, deadline = processes(tmp_path), time.monotonic() + 30
        assert len(pids) == 2
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_running, pids))
    assert balanced(pool.stats()).timeouts == 2


def test_a_pool_of_processes_given_as_it_is_that_breaks_loses_no_value(tmp_path):
    value_fn = functools.partial(oracles.dies_slowly, str(tmp_path))
    arrived = []
    with ProcessPoolExecutor(2, mp_context=CONTEXT) as executor:
        (tmp_path / "end").touch()
        with pool_of(value_fn, executor, max_concurrent=6) as pool:
            arrived += pool.evaluate(enumerate(points(3)))
            (tmp_path / "end").unlink()
            killer = threading.Thread(target=kill_one_of, args=(tmp_path, 5, False))
            killer.start()
            rule = "must be a function that makes executors if workers may be killed"
            with pytest.raises(RuntimeError, match=f"{rule}.*BrokenProcessPool.*lost"):
                arrived += pool.evaluate(enumerate(points(6, 3), 3))
            # So none of them can begin a call any more, and the stats are final.
            assert not any(map(is_running, processes(tmp_path)))
            killer.join()
            stats = balanced(pool.stats())
            with pytest.raises(RuntimeError, match=rule):
                list(pool.evaluate([(0, np.zeros(9))]))
    # Two were called, and two more waited in the queue of the processes.
    assert stats.calls == oracles.size(tmp_path / "calls") == 5
    assert (stats.values, stats.lost) == (3, 2)
    assert sorted(arrived) == [(i, value_of(x)) for i, x in enumerate(points(3))]


def test_executors_whose_workers_never_start_are_given_up():
    broken = functools.partial(
        ProcessPoolExecutor,
        1,
        mp_context=CONTEXT,
        initializer=oracles.kills_itself_at_once,
    )
    rule = "must make executors whose workers start; got 3 in a row"
    with (
        pool_of(value_of, broken, max_concurrent=1) as pool,
        pytest.raises(RuntimeError, match=f"{rule}.*__main__"),
    ):
        list(pool.evaluate(enumerate(points(4))))
    assert pool.stats().calls == 0


def test_what_cannot_be_sent_to_a_process_is_raised():
    with pool_of(lambda point: 0.0, one_process) as pool:
        with pytest.raises((AttributeError, TypeError, Exception)) as caught:
            list(pool.evaluate(enumerate(points(2))))
        assert "must be importable by name, not a lambda" in caught.value.__notes__[0]
    assert pool.stats().calls == 0


def test_workers_that_died_while_idle_are_replaced(tmp_path):
    (tmp_path / "end").touch()
    value_fn = functools.partial(oracles.waits_for, str(tmp_path))
    with pool_of(value_fn, one_process, max_concurrent=2) as pool:
        evaluated(pool, points(4))
        for pid in processes(tmp_path):
            os.kill(pid, signal.SIGKILL)
        assert evaluated(pool, points(4, 4)) == [value_of(x) for x in points(4, 4)]
    stats = balanced(pool.stats())
    assert (stats.calls, stats.lost) == (8, 0)


def test_an_iterator_given_up_leaves_its_calls_and_their_values_are_kept():
    gauge = Gauge()
    free = threading.Event()

    def value_fn(point):
        if point[0] > 0:
            free.wait(30)
        return gauge(point)

    with pool_of(value_fn, max_concurrent=2) as pool:
        values = pool.evaluate(enumerate(points(9)))
        assert next(values) == (0, value_of(points(1)[0]))
        with pytest.raises(RuntimeError, match="a pool that is busy"):
            list(pool.evaluate([]))
        values.close()
        deadline = time.monotonic() + 30
        while pool.stats().under_way < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        free.set()
        # The first of these is under way, or was.
        assert evaluated(pool, points(3)) == [value_of(x) for x in points(3)]
        num_calls = gauge.calls
    assert num_calls <= 3
    stats = balanced(pool.stats())
    assert (stats.calls, stats.under_way) == (gauge.calls, 0)


def test_an_iterator_that_outlives_its_pool_just_ends():
    gauge = Gauge()
    with pool_of(gauge, max_concurrent=2) as pool:
        values = pool.evaluate(enumerate(points(9)))
        next(values)
    assert len(list(values)) <= 2
    assert pool.stats().calls == gauge.calls <= 3


def test_an_error_of_the_queries_is_raised_and_the_pool_goes_on():
    def made():
        yield 0, np.zeros(2)
        message = "of the queries"
        raise LookupError(message)

    with pool_of(value_of) as pool:
        with pytest.raises(LookupError, match="of the queries"):
            list(pool.evaluate(made()))
        assert evaluated(pool, points(2)) == [value_of(x) for x in points(2)]
    assert balanced(pool.stats()).under_way == 0


def test_a_bar_shows_the_calls_of_the_budget(capfd):
    with pool_of(value_of, budget=9, progress=True) as pool:
        evaluated(pool, points(4))
    assert "4/9" in capfd.readouterr().err


def test_the_folder_of_the_marks_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pool_of(value_of) as pool:
        evaluated(pool, points(4))
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
