"""A run that is killed, while it writes too, ends as if it had not been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.gate


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_20_times_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    script = Path(__file__).parent / "killed_runs.py"
    call = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 20
    assert report["half_written"] >= 3  # Else these were no kills of a write under way.
    assert report["gone_on"] >= 10  # Else each run began anew.
    assert report["ends"]
    assert all(report["ends"])
    # Nothing half written is left, and no more than what is to be kept.
    for run in tmp_path.glob("run_*"):
        assert {path.name for path in run.iterdir()} <= {"step_59", "step_60"}
