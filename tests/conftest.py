"""Strict flags, the compilation cache, and the tables that contracts run over."""

import gc
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import ESTIMATORS, KINDS
from language import toy_files

import radazo
from radazo import core, flat

# With these flags XLA compiles three times as fast, and programs run slower: tests
# compile much and run little. If `XLA_FLAGS` is set, even empty, it is used instead.
QUICK = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
is_quick = os.environ.setdefault("XLA_FLAGS", " ".join(QUICK)) == " ".join(QUICK)
MAX_RESIDENT_BYTES = 1.5e9
# Tracing makes millions of objects, few in cycles: collecting takes 1/8 of the time.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling is most of the time of a test: all workers, processes that tests start, and
# later runs share what XLA compiled. Set `RADAZO_TEST_CACHE` to another folder.
CACHE = Path(
    os.environ.get("RADAZO_TEST_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "radazo-tests")
)
for name, value in {
    "jax_compilation_cache_dir": str(CACHE),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


def pytest_configure(config):
    """Remove what was compiled more than two weeks ago, once for all workers."""
    if not hasattr(config, "workerinput"):
        for path in CACHE.glob("*-cache"):
            if time.time() - path.stat().st_mtime > 14 * 24 * 3600:
                path.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as `gate` the cases beyond the number that `fast_cases` allows."""
    num_seen, hint = Counter(), "run `XLA_FLAGS= pytest -m optimized`"
    for item in items:
        if item.get_closest_marker("optimized"):
            item.add_marker("gate")
            item.add_marker(pytest.mark.skipif(is_quick, reason=hint))
        if item.get_closest_marker("gate"):
            continue
        for marker in item.iter_markers("fast_cases"):
            name = item.nodeid.partition("[")[0]
            num_seen[name] += 1
            if num_seen[name] > marker.args[0]:
                item.add_marker("gate")


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Drop compiled programs when a process has grown: else it reaches gigabytes."""
    yield
    if resident_bytes() > MAX_RESIDENT_BYTES:
        jax.clear_caches()
        gc.collect()


def resident_bytes():
    """The memory of this process, as far as the system says."""
    info = Path("/proc/self/statm")
    if not info.exists():
        return np.inf
    num_pages = int(info.read_text(encoding="utf-8").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


OPTIMIZERS = {
    "radazo": radazo.radazo,
    "zo_adamm": radazo.zo_adamm,
    "zo_rmsprop": radazo.zo_rmsprop,
    "zo_sgd": radazo.zo_sgd,
    "zo_signsgd": radazo.zo_signsgd,
    "meazo": radazo.meazo,
}


@pytest.fixture(
    params=[
        pytest.param(row, id=name, marks=() if name in KINDS else pytest.mark.gate)
        for name, row in ESTIMATORS.items()
    ]
)
def row(request):
    """Each estimator's row of the table in turn; one of each kind is fast."""
    return request.param


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    """The row of one estimator of each kind of program, in turn."""
    return request.param


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def make_optimizer(request):
    """Each complete optimizer's factory in turn."""
    return request.param


@pytest.fixture(params=[radazo.forward, radazo.central], ids=["forward", "central"])
def difference(request):
    return request.param


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder of toy reviews, and of toy causes and effects."""
    yield from toy_files(tmp_path_factory.mktemp("data"))


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@contextmanager
def as_a_user():
    """The flags that users have: JAX's own promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def of_users():
    """For models and functions that are written as users write."""
    with as_a_user():
        yield


@contextmanager
def raises(kind, *parts):
    """`kind` is raised and its message has the four parts: each of `parts` in order."""
    assert kind in (TypeError, ValueError)
    pattern = ".*".join(re.escape(part) for part in parts)
    with pytest.raises(kind, match=f"(?s){pattern}") as caught:
        yield caught


class Mistake(NamedTuple):
    """A wrong call and the parts of the message it deserves."""

    call: Callable[[], Any]
    kind: type[Exception]
    api_name: str  # function(argument
    rule: str  # The text after "must".
    got: str
    hint: str


def explained(mistake):
    """Check that the mistake raises one message of just four parts; return its text."""
    head = f"`{mistake.api_name}=...)` must {mistake.rule}; got {mistake.got}"
    with raises(mistake.kind, head, mistake.hint) as caught:
        mistake.call()
    text = str(caught.value)
    assert re.fullmatch(r"(?s)`[\w.()]+\(\w+=\.\.\.\)` must .+; got .+\. .+[.)?]", text)
    assert type(caught.value) is mistake.kind
    return text


def half_sum_of_squares(params):
    """A smooth function of any pytree, in float32 at least; its gradient is params."""
    leaves = [
        x
        for x in jax.tree.leaves(params)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    wide = [
        x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32) for x in leaves
    ]
    return sum((jnp.sum(x * x) for x in wide), start=jnp.float32(0)) / 2


def counting(value_fn):
    """`value_fn`, and a list that grows by one for each value taken as it runs."""
    calls = []

    def on_the_host(value):
        calls.append(float(value))
        return value

    def noted(value):
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(on_the_host, shape, value, vmap_method="sequential")

    @jax.custom_jvp
    def counted(params):
        return noted(value_fn(params))

    @counted.defjvp
    def derivative(primals, tangents):
        value, slope = jax.jvp(value_fn, primals, tangents)
        value = noted(value)
        return value, slope + 0 * value  # JAX drops a call whose result is unused.

    return counted, calls


def estimator_of(init, estimate):
    """The estimator of `estimate(value_fn, params, state)`, which returns all four."""

    def step(key_data, params, state):
        del state
        layout = flat.layout("estimator_of", params)
        return core.Step(key_data, layout, params, jnp.float32(1))

    def queries(step, state):
        def fused(function, *_):
            value_fn = lambda params: jnp.sum(function(params)[0])
            found = estimate(value_fn, step.params, state)
            return core.Readings(None, None, None, fused=found)

        return core.Queries(1, None, None, 1, fused=fused)

    def from_readings(step, _, queries, readings):
        value, gradient, state, info = readings.fused
        vector = flat.ravel(step.layout, gradient)
        return core.Estimate(value, vector, state, info, jnp.uint32(0))

    return core.Estimator("estimator_of", init, step, queries, from_readings)
