"""Runs with a journal, killed at random moments, reported as JSON.

`python killed_journals.py folder`: half of the runs have checkpoints, too.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from killed_runs import ended, forked

import radazo

NUM_KILLS, NUM_STEPS = 12, 60


def started():
    """Optimizer and parameters, made in a child alone."""
    estimator = radazo.sphere_estimator(num_directions=3)
    params = {"w": jnp.ones(3), "half": jnp.ones(5, jnp.bfloat16)}
    return radazo.radazo(0.05, estimator, key=0), params


def value_fn(params, batch):
    wide = params["half"].astype(jnp.float32)
    return jnp.sum(jnp.square(params["w"] - batch)) + jnp.sum(jnp.square(wide))


def bits(tree):
    return [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(tree)]


def run(journal, checkpoints, callback=None):
    """One step a call, so that there is a write after each."""
    optimizer, params = started()
    return radazo.minimize(
        value_fn,
        params,
        optimizer,
        NUM_STEPS,
        batches=(np.float32(np.sin(i)) for i in range(NUM_STEPS)),
        checkpoints=checkpoints,
        journal=journal,
        callback=callback,
        progress=False,
    )


def until_finished(folder, kept):
    def work(say):
        def slowly(result):
            say(result.num_steps)
            time.sleep(0.005)

        journal = folder / "run.journal"
        if kept:
            with radazo.run.open_checkpoints(
                folder, interval_seconds=0.1
            ) as checkpoints:
                result = run(journal, checkpoints, slowly)
        else:
            result = run(journal, None, slowly)
        say(json.dumps(bits((result.params, result.state))))

    return work


def replayed(path):
    def work(say):
        say(json.dumps(bits(radazo.journal.replay(path, *started()))))

    return work


def report_of(work):
    """What a child says that is left alone."""
    with forked(work)[1] as lines:
        said = ended(lines)
    os.wait()
    return said


def main(folder):
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    (folder / "whole").mkdir()
    path = folder / "whole" / "run.journal"
    whole = report_of(until_finished(path.parent, kept=False))
    journal, rng = path.read_bytes(), np.random.default_rng(0)
    report = {"kills": 0, "lengths": [], "ends": []}
    report["replayed"] = report_of(replayed(path)) == whole
    while len(report["ends"]) < 2:
        at, kept = folder / f"run_{len(report['ends'])}", not report["ends"]
        at.mkdir(exist_ok=True)
        child, lines = forked(until_finished(at, kept))
        with lines:
            if report["kills"] < NUM_KILLS * (len(report["ends"]) + 1) // 2:
                lines.readline()
                time.sleep(rng.uniform(0, 0.3))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            now = (at / "run.journal").read_bytes()
            if status != signal.SIGKILL:
                assert status == 0, "A run has ended by itself, not to be gone on from."
                report["ends"].append(ended(lines) == whole and now == journal)
                continue
        report["kills"] += 1
        report["lengths"].append(len(now))
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
