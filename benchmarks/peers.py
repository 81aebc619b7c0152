"""Compare radazo with evosax, EvoTorch, pycma, nevergrad and others.

  python -m benchmarks peers                    needs pip install '.[benchmarks,peers]'

All methods minimize the same functions from the same start, N(0, I), with the same
number of function values. Each is tuned by the same rule: one knob, eight runs on a
seed that is not reported. Tuning starts at a fixed value and walks by factors of ten,
then of half and of a quarter of a power, towards the lowest result. A knob at the edge
of those tried is marked (edge). A run whose last finite value is above its start counts
as infinite, even if some of its first points were lower.

The reported value is the lowest that a run has seen, at its evaluated points or at the
point that it would return: the mean of the sampler for evolution strategies, the
recommendation for nevergrad, the last point for the others. So no package loses by its
choice of the returned point. The rows of radazo use only values at its iterates, not at
perturbed points, which may be slightly lower. Result lines also hold the value at the
returned point. Evaluations of returned points, 40 in a run, are free.

A knob is known to half or a quarter of a power of ten, and radazo has five rows where
most packages have one or two: a difference of a few per cent is not significant.

JAX and PyTorch compute in float32, or both in float64 (`--dtype`); packages of NumPy
compute in float64. Compilation of JAX loops does not count as time of a run. The
process uses one core, where the system allows it, and libraries use one thread: the
arrays are small, and on a shared machine a second thread makes PyTorch and CMA-ES 20
times slower. Seconds are processor time.

Each (function, dim, method) is a result line once it is finished, and the same command,
started again, skips it. All of them take some three hours, half of them nevergrad's,
which comes last: Ctrl-C during it shows all other results. On another core
`taskset -c 1 python -m benchmarks peers --methods nevergrad` can use the same folder.
"""

import argparse
import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import threadpoolctl
from rich.console import Console
from tqdm import tqdm

from benchmarks import records
from benchmarks.methods import chosen
from benchmarks.problems.twins import TWINS, Twin
from benchmarks.rivals import METHODS, PACKAGES, label, load, report
from benchmarks.rivals.report import draw, markdown
from benchmarks.rivals.trace import Trace

__all__ = ["draw", "main", "markdown"]

FUNCTIONS = ("quadratic", "rosenbrock", "levy", "rastrigin")
Run = Callable[[int, float], Trace]  # Of a seed and a knob.


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Minimize the same functions with radazo and with other packages.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--functions", default=",".join(FUNCTIONS), help="separated by commas")
    add("--dims", default="100,10000", help="numbers of parameters")
    add("--methods", default=",".join(PACKAGES), help="packages or methods of them")
    add("--budget", type=int, default=55_000, help="function values of a run")
    add("--trials", type=int, default=8, help="runs that tune a method")
    add("--tuning-seed", type=int, default=1, help="seed of those runs")
    add("--seeds", type=int, default=3, help="reported runs")
    add("--seed", type=int, default=456, help="first of their seeds")
    add("--dtype", choices=["float32", "float64"], default="float32", help="type of x")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    args.functions = chosen(parser, "--functions", args.functions, TWINS)
    known = {**PACKAGES, **METHODS}
    names = set(chosen(parser, "--methods", args.methods, known))
    args.methods = [x for x in METHODS if {x, METHODS[x].package} & names]
    try:
        args.dims = [int(dim) for dim in args.dims.split(",")]
    except ValueError:
        parser.error(f"--dims: '{args.dims}' is not a list of numbers")
    if min(args.dims) < 2 or args.budget < 100 or min(args.trials, args.seeds) < 1:
        parser.error("--dims must be at least 2, --budget 100, --trials and --seeds 1")
    args.seeds = list(range(args.seed, args.seed + args.seeds))
    if args.tuning_seed in args.seeds:
        parser.error(f"--tuning-seed: {args.tuning_seed} is one of the reported seeds")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    # JAX counts cores on first use, and evosax uses it on import.
    with one_core():
        finished = compared(args, console)
    if not finished:
        console.print("No piece was finished.")
        return
    for key, lines in report.cells(finished).items():
        console.print(report.heading(key, lines))
        console.print(report.table(lines))
    console.print(
        f"{report.AHEAD} ends lower, in all runs, than radazo's best method in any."
    )
    path = draw(finished, args.output / "peers.png")
    console.print(f"Figure: {path}\nResult lines: {args.output / 'peers.jsonl'}")


def compared(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Return the result lines of all methods that can be run."""
    packages = dict.fromkeys(METHODS[name].package for name in args.methods)
    modules = {}
    for package in packages:
        module = load(package)
        if isinstance(module, str):
            console.print(module, style="yellow", markup=False)
        else:
            modules[package] = module
    pieces = [
        (name, dim, function)
        for name in args.methods
        if METHODS[name].package in modules
        for dim in args.dims
        if dim <= METHODS[name].max_dim
        for function in args.functions
    ]
    finished: list[dict[str, Any]] = []
    total = len(pieces) * (args.trials + len(args.seeds))
    with (
        # threadpoolctl limits only libraries that are already loaded.
        threadpoolctl.threadpool_limits(1),
        # tqdm shows a bar on terminals only (disable=None); elsewhere print a line.
        tqdm(total=total, unit="run", disable=None, leave=False) as bar,
    ):
        try:
            for name, dim, function in pieces:
                module = modules[METHODS[name].package]
                finished.append(piece(module, name, dim, function, args, bar))
        except KeyboardInterrupt:
            bar.write("Interrupted. Finished pieces:")
    return finished


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Use only the first core; only Linux allows a process to choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def piece(
    module: ModuleType,
    name: str,
    dim: int,
    function: str,
    args: argparse.Namespace,
    bar: tqdm,
) -> dict[str, Any]:
    """Return the result line of one method on one function, stored or new."""
    names = ("budget", "trials", "tuning_seed", "dtype")
    settings = {key: getattr(args, key) for key in names}
    settings |= {"function": function, "dim": dim, "method": name}
    settings |= {"package_version": module.VERSION}
    path, what = args.output / "peers.jsonl", f"{function}, d = {dim:,}, {label(name)}"
    # Read it each time, because another process may be writing to the same folder.
    line = records.find(records.read(path), args.seeds, settings)
    if line is not None:
        bar.write(f"{what}: found")
        bar.update(args.trials + len(args.seeds))
        return line
    bar.set_description(what)
    started = time.perf_counter()
    run = functools.partial(
        one_run, module, name, TWINS[function], dim, args.dtype, args.budget, bar
    )
    numbers = measured(run, METHODS[name].center, dim, args)
    line = records.append(path, "peers", args.seeds, settings, numbers)
    bar.write(
        f"{what}: {report.number(report.final(line))}, "
        f"{time.perf_counter() - started:.0f} s for all runs"
    )
    return line


def one_run(
    module: ModuleType,
    name: str,
    problem: Twin,
    dim: int,
    dtype: str,
    budget: int,
    bar: tqdm,
    seed: int,
    knob: float,
) -> Trace:
    start = np.random.default_rng(seed).standard_normal(dim).astype(dtype)
    trace = module.run(METHODS[name].algorithm, problem, start, seed, knob, budget)
    bar.update(1)
    return trace


def measured(
    run: Run, center: tuple[float, float], dim: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Tune on one seed, run on the others, and return the numbers of a result line."""
    started = time.perf_counter()
    first = center[0] * dim ** center[1]
    tried = tune(lambda knob: improved(run(args.tuning_seed, knob)), first, args.trials)
    tuning_seconds = time.perf_counter() - started
    knob = lowest(tried)
    traces = [run(seed, knob) for seed in args.seeds]
    return {
        "tuned_knob": knob,
        "tuned_at_edge": len(tried) > 1 and knob in (min(tried), max(tried)),
        "tuning": sorted(tried.items()),
        "tuning_seconds": tuning_seconds,
        "value_at_start": [t.current[0] for t in traces],
        "best_at_end": [t.best[-1] for t in traces],
        "returned_at_end": [t.current[-1] for t in traces],
        "function_values": [t.points[-1] for t in traces],
        "points": traces[0].points,
        "best": [records.rounded(t.best) for t in traces],
        "returned": [records.rounded(t.current) for t in traces],
        "run_seconds": [t.seconds for t in traces],
        "compile_seconds": max(t.compile_seconds for t in traces),
    }


def improved(trace: Trace) -> float:
    """Return the lowest value of a run; infinity if it does not end below its start.

    It ends at its last finite point: in float32 a distribution that has shrunk to a
    point may end in NaN.
    """
    ends = trace.current[np.isfinite(trace.current)]
    return trace.best[-1] if len(ends) and ends[-1] < trace.current[0] else math.inf


def tune(
    value_at: Callable[[float], float], center: float, trials: int
) -> dict[float, float]:
    """Return values by knob, of a walk over center · 10ᵉ to the lowest, then finer."""
    knobs, tried, step = {0.0: center}, {}, 1.0
    tried[center] = finite(value_at(center))
    while len(tried) < trials:
        best = next(e for e, knob in knobs.items() if knob == lowest(tried))
        near = [e for e in (best - step, best + step) if e not in knobs]
        if not near:
            step /= 2
            continue
        knob = knobs[near[0]] = center * 10 ** near[0]
        tried[knob] = finite(value_at(knob))
    return tried


def finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.inf


def lowest(tried: dict[float, float]) -> float:
    """Return the first knob of the lowest value, or the smallest if all diverge."""
    return min(tried, key=lambda knob: (tried[knob], tried[knob] == math.inf and knob))
