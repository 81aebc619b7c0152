"""A run that is killed leaves a journal that it goes on with, to the last byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.gate


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_ends_with_the_journal_of_one_that_was_not(tmp_path):
    script = Path(__file__).parent / "killed_journals.py"
    call = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 12
    assert len({*report["lengths"]}) >= 4  # Else they came all at one moment.
    assert report["ends"] == [True, True]
    assert report["replayed"]
