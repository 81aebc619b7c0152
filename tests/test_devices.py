"""`python -m benchmarks devices`: one run, whatever it is cut into."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import devices

pytestmark = pytest.mark.gate

SMALL = ["--dim", "300", "--num-directions", "5", "--steps", "50"]


def printed(*options):
    command = [sys.executable, "-m", "benchmarks", "devices", *SMALL, *options]
    root = Path(__file__).parent.parent
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, cwd=root
    )
    found = re.search(
        r"(\d+) devices of (\d+) processes: .* fingerprint (\w{16})", result.stdout
    )
    return int(found[1]), int(found[2]), found[3]


def test_fifty_steps_have_the_same_bits_in_one_and_four_processes():
    words, _ = devices.run(50, 300, 5)  # Over the eight devices of this process.
    here = f"{words[0]:08x}{words[1]:08x}"
    assert printed("--processes", "4") == (4, 4, here)
    other, _ = devices.run(10, 300, 5)
    assert f"{other[0]:08x}{other[1]:08x}" != here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        devices.main(options)
    assert message in capsys.readouterr().err
