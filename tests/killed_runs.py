"""A run killed 20 times at random moments, reported as JSON; started by test_kills.py.

`python killed_runs.py folder`. Children are forked from a process that has imported all
and computed nothing, so that starting one costs little.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import radazo

importlib.import_module("orbax.checkpoint")  # Once for all children.
NUM_KILLS, NUM_STEPS = 20, 60


def value_fn(params, batch):
    wide = params["half"].astype(jnp.float32)
    return jnp.sum(jnp.square(params["w"] - batch)) + jnp.sum(jnp.square(wide))


def run(checkpoints, callback=None):
    """The run: every step is kept, and the data are an iterator's."""
    params = {"w": jnp.ones(3), "half": jnp.ones(5, jnp.bfloat16)}
    estimator = radazo.rademacher_estimator(num_directions=1)
    return radazo.minimize(
        value_fn,
        params,
        radazo.radazo(0.05, estimator, key=0),
        NUM_STEPS,
        batches=(np.float32(np.sin(i)) for i in range(NUM_STEPS)),
        checkpoints=checkpoints,
        callback=callback,
        progress=False,
    )


def bits(result):
    """All of a result, as text in which no bit is lost."""
    leaves, treedef = jax.tree.flatten(result)
    return str(treedef), [
        (str(x.dtype), x.shape, np.asarray(x).tobytes().hex())
        if hasattr(x, "dtype")
        else repr(x)
        for x in leaves
    ]


@contextlib.contextmanager
def leaving():
    """A child ends here whatever comes, and leaves the rest to its parent."""
    status = 1
    try:
        yield
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def forked(work):
    """A child that does `work(say)`, and what it says, line by line."""
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        os.close(heard)
        with leaving():
            work(lambda line: os.write(said, f"{line}\n".encode()))
    os.close(said)
    return child, os.fdopen(heard)


def until_finished(folder):
    def work(say):
        with radazo.run.open_checkpoints(folder, interval_seconds=0) as checkpoints:
            result = run(checkpoints, lambda result: say(result.num_steps))
        say(json.dumps(bits(result)))

    return work


def ended(lines):
    """The bits of the result, which is the last that a child says."""
    return json.loads(lines.read().splitlines()[-1])


def main(folder):
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    whole = ended(forked(lambda say: say(json.dumps(bits(run(None)))))[1])
    os.wait()
    rng = np.random.default_rng(0)
    report = {"kills": 0, "half_written": 0, "gone_on": 0, "ends": []}
    while report["kills"] < NUM_KILLS or not report["ends"]:
        at = folder / f"run_{len(report['ends'])}"
        child, lines = forked(until_finished(at))
        with lines:
            if report["kills"] < NUM_KILLS:
                # One in four while the run starts, the others some steps later.
                num_seen = rng.integers(1, 5) if report["kills"] % 4 else 0
                seen = [lines.readline() for _ in range(num_seen)]
                # A run killed at its very end has nothing more to say than that.
                first = seen[0].strip() if seen else ""
                report["gone_on"] += first.isdigit() and int(first) > 1
                time.sleep(rng.uniform(0, 0.15 if num_seen else 1.0))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if status != signal.SIGKILL:
                assert status == 0, "A run has ended by itself, not to be gone on from."
                report["ends"].append(ended(lines) == whole)
                continue
        report["kills"] += 1
        report["half_written"] += bool([*at.glob("*tmp*")])
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
