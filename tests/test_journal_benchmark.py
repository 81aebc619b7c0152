"""The speed of a replay, at a toy size."""

import pytest

from benchmarks import journal, records

pytestmark = pytest.mark.gate


def test_a_line_has_the_seconds_of_runs_and_of_their_replays(tmp_path, capsys):
    size = "--dim 5 --num-directions 2 --steps 2 --rounds 2"
    journal.main([*size.split(), "--output", str(tmp_path)])
    (line,) = records.read(tmp_path / "journal.jsonl")
    cheap, slow = line["numbers"]["cases"]
    assert [cheap["steps"], slow["steps"]] == [80, 2]
    for case in (cheap, slow):
        assert len(case["seconds"]) == 2
        assert all(run > 0 and replay > 0 for run, replay in case["seconds"])
    # Three values a step, for each of which the run waits and the replay does not.
    assert all(run > 2 * 3 * 0.01 for run, _ in slow["seconds"])
    printed = capsys.readouterr().out
    assert "d = 5, K = 2" in printed
    assert "| 10 ms | 2 |" in printed


def test_the_table_has_medians_and_their_ratio():
    case = {"wait": 0.01, "steps": 10, "seconds": [[1, 0.1], [2, 0.1], [4, 0.1]]}
    line = {
        "settings": {"dim": 1000, "num_directions": 10},
        "numbers": {"cases": [case]},
    }
    assert "| 10 ms | 10 | 5.0 | 100.0 | 20.0 |" in journal.markdown([line])
