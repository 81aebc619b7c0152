"""Compare the speed of a replay from a journal with the run itself.

One function costs nearly nothing; the other waits 10 ms per value on the host, as a
simulation would. The second half of a run is timed, after the first half has compiled;
the time of its replay includes reading the journal and tracing.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import radazo
from benchmarks import figures, records


def value_fn(seconds: float) -> Any:
    """Return a sum of squares, after a wait."""

    def waited(x: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return np.sum(np.square(x), dtype=np.float32)

    kind = jax.ShapeDtypeStruct((), jnp.float32)
    if seconds:
        return lambda x: jax.pure_callback(waited, kind, x, vmap_method="sequential")
    return lambda x: jnp.sum(x**2)


def timed(seconds: float, dim: int, num_directions: int, steps: int) -> list[float]:
    """Time the steps of a run with a journal, and of its replay, in seconds."""
    estimator = radazo.sphere_estimator(num_directions=num_directions)
    optimizer, start = radazo.radazo(1e-3, estimator, key=0), jnp.ones(dim)
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.journal"
        result = radazo.minimize(
            *(value_fn(seconds), start, optimizer, 2 * steps),
            callback=lambda _: seen.append(time.perf_counter()),
            callback_every=steps,
            progress=False,
            journal=path,
        )
        half = radazo.journal.replay(path, optimizer, start, count=steps)
        begun = time.perf_counter()
        again, _ = jax.block_until_ready(radazo.journal.replay(path, optimizer, *half))
        ended = time.perf_counter()
    assert np.array_equal(again, result.params)
    return [seen[1] - seen[0], ended - begun]


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return the newest line as a table."""
    numbers, given = lines[-1]["numbers"], lines[-1]["settings"]
    rows = []
    for case in numbers["cases"]:
        run, replay = case["steps"] / np.array(case["seconds"]).T
        speeds = (f"{np.median(x):,.1f}" for x in (run, replay, replay / run))
        rows.append([f"{1e3 * case['wait']:g} ms", f"{case['steps']:,}", *speeds])
    header = ["a value waits", "steps", "run, steps / s", "replay, steps / s", "ratio"]
    text = f"d = {given['dim']:,}, K = {given['num_directions']}; medians of rounds."
    return f"{text}\n\n{figures.markdown_table(header, rows)}"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks journal", description=__doc__.split("\n\n")[0]
    )
    for name, default in {"dim": 1000, "num-directions": 10, "steps": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output"))
    args = parser.parse_args(argv)
    sizes, cases = (args.dim, args.num_directions), []
    for wait, steps in ((0.0, 40 * args.steps), (0.01, args.steps)):
        seconds = [timed(wait, *sizes, steps) for _ in range(args.rounds)]
        cases.append({"wait": wait, "steps": steps, "seconds": seconds})
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    path = args.output / "journal.jsonl"
    line = records.append(path, "journal", [0], settings, {"cases": cases})
    records.console().print(markdown([line]))
