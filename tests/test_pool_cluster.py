"""A cluster is an executor like others: workers of dask.distributed on one machine."""

import numpy as np
import oracles
import pytest
from oracles import Scripted

import radazo

distributed = pytest.importorskip("distributed", reason="needs dask.distributed")

pytestmark = pytest.mark.gate


@pytest.fixture(scope="module")
def cluster():
    """Two workers; they listen, on this machine alone."""
    options = {"dashboard_address": None, "silence_logs": 50, "host": "127.0.0.1"}
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, **options
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


@pytest.mark.parametrize("is_made", [True, False])
def test_a_cluster_whose_worker_is_killed_loses_nothing(tmp_path, is_made, cluster):
    executor = cluster.get_executor if is_made else cluster.get_executor()
    shares = {"raises": 0.15, "nan": 0.05, "kills": 0.1}
    value_fn, script = Scripted(tmp_path, shares), oracles.Expected(shares, 3)
    queries = [np.full(3, i, np.float32) for i in range(12)]
    options = {"max_concurrent": 2, "max_retries": 3, "backoff": 0.001, "budget": 100}
    with radazo.pool.evaluation_pool(value_fn, executor, **options) as pool:
        values = dict(pool.evaluate(enumerate(queries)))
        stats = pool.stats()
    np.testing.assert_array_equal(
        [values[i] for i in range(12)], [script(point) for point in queries]
    )
    # A value that has not left the worker that is killed is lost, too; it is repeated.
    assert stats.calls == value_fn.num() >= script.calls
    assert stats.lost >= value_fn.num("kills") >= script.counts["kills"] > 0
    assert stats.exceptions >= script.counts["raises"] > 0
