"""What is said about a wrong argument of a pool, before anything is called."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import Mistake, explained

import radazo

POOL = "evaluation_pool"
EVALUATE = "EvaluationPool.evaluate"
RUN = "EvaluationPool.minimize"
A_NUMBER = "It is the number of calls under way at once: one for each worker."
SECONDS = "It is the seconds that a call may take, or None for no limit."
RETRIES = "It is how often a call without an answer is repeated."
PAUSE = "It is the seconds before a call is repeated, doubled each time."
BUDGET = "It is the number of calls that may be begun, or None for no limit."
CACHE = "True keeps all values, False none, a number as many as it says."
EXECUTOR = "Pass `ThreadPoolExecutor` itself or `partial(ProcessPoolExecutor, 1, "


def pool(value_fn=np.sum, executor=ThreadPoolExecutor, **options):
    options = {"max_concurrent": 2, **options}
    return lambda: radazo.pool.evaluation_pool(value_fn, executor, **options)


def evaluating(queries, **options):
    def call():
        with pool(**options)() as opened:
            list(opened.evaluate(queries))

    return call


def running(optimizer, num_steps=1, value_fn=np.sum, **options):
    def call():
        with pool(value_fn)() as opened:
            opened.minimize(np.zeros(2, np.float32), optimizer, num_steps, **options)

    return call


def broken(point):
    raise NameError(point)


OPTIMIZER = radazo.radazo(0.1, key=0)
NUMBER, OF_TYPE = ValueError, TypeError
MISTAKES = {
    "a function that never answers": (
        running(OPTIMIZER, value_fn=broken),
        NUMBER,
        RUN,
        "value_fn",
        "give a value in the first step",
        "none in 33 calls; the last: NameError: [",
        "Call it once yourself with the parameters.",
    ),
    "no function": (pool(3), OF_TYPE, POOL, "value_fn", "be a function", "3."),
    "an executor by name": (
        pool(executor="threads"),
        OF_TYPE,
        POOL,
        "executor",
        "be a function",
        "'threads'.",
        EXECUTOR,
    ),
    "a function that makes no executor": (
        evaluating([(0, np.ones(2))], executor=int),
        OF_TYPE,
        POOL,
        "executor",
        "make an Executor",
        "0.",
        "Pass `partial(ProcessPoolExecutor, 1, mp_context=get_context('spawn'))`, say.",
    ),
    "no calls at once": (
        pool(max_concurrent=0),
        NUMBER,
        POOL,
        "max_concurrent",
        "be at least 1",
        "0.",
        A_NUMBER,
    ),
    "half a call": (
        pool(max_concurrent=1.5),
        OF_TYPE,
        POOL,
        "max_concurrent",
        "be an integer",
        "1.5.",
        A_NUMBER,
    ),
    "no time": (
        pool(timeout=0),
        NUMBER,
        POOL,
        "timeout",
        "be finite and greater than 0",
        "0.",
        SECONDS,
    ),
    "a time-out that is infinite": (
        pool(timeout=np.inf),
        NUMBER,
        POOL,
        "timeout",
        "be finite and greater than 0",
        "inf.",
        SECONDS,
    ),
    "fewer than no retries": (
        pool(max_retries=-1),
        NUMBER,
        POOL,
        "max_retries",
        "be at least 0",
        "-1.",
        RETRIES,
    ),
    "a pause before now": (
        pool(backoff=-0.1),
        NUMBER,
        POOL,
        "backoff",
        "be finite and at least 0",
        "-0.1.",
        PAUSE,
    ),
    "a budget below zero": (
        pool(budget=-1),
        NUMBER,
        POOL,
        "budget",
        "be at least 0",
        "-1.",
        BUDGET,
    ),
    "a budget in money": (
        pool(budget=9.5),
        OF_TYPE,
        POOL,
        "budget",
        "be an integer",
        "9.5.",
        BUDGET,
    ),
    "a cache of no values": (
        pool(cache=0),
        NUMBER,
        POOL,
        "cache",
        "be at least 1",
        "0.",
        CACHE,
    ),
    "a cache by name": (
        pool(cache="disk"),
        OF_TYPE,
        POOL,
        "cache",
        "be an integer",
        "'disk'.",
        CACHE,
    ),
    "progress by name": (
        pool(progress="bar"),
        OF_TYPE,
        POOL,
        "progress",
        "be a bool",
        "'bar'.",
        "None shows a bar on a terminal where tqdm is installed.",
    ),
    "one number for queries": (
        evaluating(3),
        OF_TYPE,
        EVALUATE,
        "queries",
        "be an Iterable",
        "3.",
        "Pass a list, or a generator that makes one point at a time.",
    ),
    "points without ids": (
        evaluating([np.ones(3)]),
        NUMBER,
        EVALUATE,
        "queries",
        "be an iterable of (id, point)",
        "array([1., 1., 1.]).",
        "The id is anything, and comes back with the value.",
    ),
    "points of any objects": (
        evaluating([(0, np.array([object()]))]),
        OF_TYPE,
        EVALUATE,
        "queries",
        "be points of arrays and numbers",
        "<class 'numpy.ndarray'> of objects.",
        "Pass `cache=False` for points that cannot be compared.",
    ),
    "no optimizer": (
        running(3),
        OF_TYPE,
        RUN,
        "optimizer",
        "be an optax.GradientTransformation",
        "3.",
        "Pass `radazo.radazo(0.01, key=0)`, say.",
    ),
    "half a step": (
        running(OPTIMIZER, 0.5),
        OF_TYPE,
        RUN,
        "num_steps",
        "be an integer",
        "0.5.",
        "It is the number of steps.",
    ),
    "a callback that is none": (
        running(OPTIMIZER, callback=3),
        OF_TYPE,
        RUN,
        "callback",
        "be a function",
        "3.",
        "It is called with the `MinimizeResult` so far.",
    ),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained(case):
    call, kind, api_name, argument, rule, got, *hint = case
    explained(Mistake(call, kind, f"{api_name}({argument}", rule, got, *(hint or [""])))


def test_a_bar_that_is_asked_for_needs_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)

    def call():
        with pool(progress=True)():
            pass

    rule, hint = "be None or False without tqdm", "Install tqdm: `pip install tqdm`."
    explained(Mistake(call, ValueError, f"{POOL}(progress", rule, "True.", hint))


def test_points_of_any_objects_can_be_evaluated_without_a_cache():
    point = np.array([object()])
    with radazo.pool.evaluation_pool(
        len, ThreadPoolExecutor, max_concurrent=1, cache=False
    ) as p:
        assert list(p.evaluate([("a", point)])) == [("a", 1.0)]
