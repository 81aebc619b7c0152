"""What Python itself says of a run: nothing listens, and no pickle is read."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys

seen = []

def hook(event, args):
    if event in ("socket.bind", "socket.connect"):
        seen.append([event, repr(args[1])])
    elif event in ("pickle.find_class", "marshal.loads") and HOT:
        seen.append([event, repr(args)])

HOT = False
sys.addaudithook(hook)

from concurrent.futures import ThreadPoolExecutor
import jax.numpy as jnp
import numpy as np
import radazo

folder = sys.argv[1]
optimizer, start = radazo.radazo(0.02, key=0), jnp.ones(5)
kept = {"checkpoints": folder + "/run", "journal": folder + "/run.journal"}
radazo.minimize(jnp.sum, start, optimizer, 5, **kept)
HOT = True  # What is imported is compiled code; what is read from here on is data.
result = radazo.minimize(jnp.sum, start, optimizer, 9, **kept)
again, _ = radazo.journal.replay(kept["journal"], optimizer, start)
assert (again == result.params).all() and result.num_steps == 9
with radazo.pool.evaluation_pool(np.sum, ThreadPoolExecutor, max_concurrent=2) as pool:
    assert pool.minimize(start, optimizer, 3).num_steps == 3
assert not seen, seen
hook("pickle.find_class", ())  # It would have been noted.
print(json.dumps(seen))
"""


@pytest.mark.gate
def test_a_run_with_all_that_is_kept_opens_no_socket_and_reads_no_pickle(tmp_path):
    call = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["pickle.find_class", "()"]]
