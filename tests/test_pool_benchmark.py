"""Throughput of a pool: the command, and what its committed lines say."""

import house
import numpy as np
import pytest

from benchmarks import pool, records

pytestmark = pytest.mark.gate


def test_a_line_holds_the_rates_of_one_worker_and_of_many(tmp_path, capsys):
    pool.main(
        ["--quick", "--workers", "threads", "--rounds", "1", "--output", str(tmp_path)]
    )
    lines = records.read(tmp_path / "pool.jsonl")
    assert [line["settings"]["workers"] for line in lines] == [4, 16]
    for line in lines:
        one, many, share = (line["numbers"][x][0] for x in ("one", "many", "share"))
        # A call lasts a twentieth of a second at least.
        assert 0 < one <= 20
        assert 0 < many <= 20 * line["settings"]["workers"]
        np.testing.assert_allclose(share, many / one / line["settings"]["workers"])
    shown = capsys.readouterr().out
    assert "Calls of 0.05 s" in shown
    text = pool.markdown([*lines, *lines])
    assert len(text.splitlines()) == 2 + 2 + 2


def test_workers_have_nine_tenths_of_what_they_could_have():
    lines = records.read(house.ROOT / "benchmarks" / "results" / "pool.jsonl")
    found = {line["settings"]["kind"]: line["numbers"]["share"] for line in lines}
    assert found.keys() == pool.NUM_WORKERS.keys()
    for line in lines:
        assert np.median(line["numbers"]["share"]) >= 0.9
